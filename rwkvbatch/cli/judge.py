"""Opens the judge of pairs of replies for `rwkvbatch compare`, with a progress bar and its stored answers."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvbatch.cli.exits import message
from rwkvbatch.errors import RunDirectoryError, UsageError

if TYPE_CHECKING:
    from rwkvbatch.judges.pairs import PairJudge
    from rwkvbatch.results.answers import AnswerStore


@contextmanager
def pair_judge(
    sources: Sequence[str], settings: dict[str, Any], criterion: str | None, *, quiet: bool
) -> Generator[PairJudge | None]:
    """The judge that the options name, with progress on standard error; None without one."""
    from rwkvbatch.cli.views import progress_bars
    from rwkvbatch.config.sources import resolve_settings
    from rwkvbatch.judges.pairs import PairJudge
    from rwkvbatch.judges.questions import DEFAULT_CRITERION, check_criterion
    from rwkvbatch.judges.source import judge_source
    from rwkvbatch.replay.judging.verdicts import opened_answers

    # A judge that only the environment names answers checks of runs; pairs are judged only if an option asks for it.
    is_given = settings.keys() & {"judge", "judge_url"}
    resolved = resolve_settings(settings, environment=os.environ)
    source = judge_source(resolved.settings, given=resolved.named) if is_given else None
    if source is None:
        if settings or criterion is not None:
            raise UsageError(
                "options of a judge need --judge FILE or --judge-url URL", hint="give one, or leave them out"
            )
        yield None
        return
    checked_criterion = DEFAULT_CRITERION if criterion is None else check_criterion(criterion)
    source.check()
    with ExitStack() as stack:
        known = stack.enter_context(opened_answers(source, _store_of(sources, quiet=quiet)))
        bars = stack.enter_context(progress_bars(quiet=quiet))
        assert known.answers is not None
        assert known.judge is not None
        yield PairJudge(known.answers, known.judge, checked_criterion, bars("asking the judge"))
        if known.drop_unused is not None:
            known.drop_unused()


def _store_of(sources: Sequence[str], *, quiet: bool) -> AnswerStore | None:
    """The store of answers in one of the run directories, the same one in any order of `sources`.

    None if no run directory is compared, or the directory cannot be used.
    """
    from rwkvbatch.results.answers import PREFERENCES_NAME, AnswerStore
    from rwkvbatch.results.folder import Folder

    paths = sorted({Path(source.partition("::")[0]).resolve() for source in sources})
    for path in paths:
        if (path / "manifest.json").is_file():
            try:
                return AnswerStore(Folder(path), PREFERENCES_NAME, alone=True)
            except RunDirectoryError as error:
                message(f"note: {error}; the judge's answers are not stored", quiet=quiet)
                return None
    message("note: no run directory is compared, so the judge's answers are not stored", quiet=quiet)
    return None
