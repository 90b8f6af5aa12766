"""Checks the settings of a run against each other and the script: refuses contradictions and logs likely mistakes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rwkvbatch.config import RunSettings
from rwkvbatch.config.names import option_name
from rwkvbatch.config.sources import ResolvedSettings
from rwkvbatch.endpoint.served import CLIENT_SETTINGS, check_settings, refuse_without
from rwkvbatch.errors import InputError, MissingDeviceError, UsageError
from rwkvbatch.judges.source import JudgeSource, judge_source
from rwkvbatch.prompt.segments import NO_GREETING, NO_GREETING_HINT
from rwkvbatch.replay.endpoint_checks import check_interface
from rwkvbatch.replay.judging.rubrics import turns_with_rubrics
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.race import FIRST_LOOK
from rwkvbatch.replay.planning.rounds import turns_of_draws
from rwkvbatch.replay.planning.row_index import Shard
from rwkvbatch.replay.pools.pool_kinds import check_pool
from rwkvbatch.script.lint import lint, lint_system
from rwkvbatch.script.reader import Script

SKIPPED_SHOWN = 5
KEYS_SHOWN = 8
CELLS_SHOWN = 8

_log = logging.getLogger(__name__)


def refuse_contradictions(resolved: ResolvedSettings, cells: Sequence[Cell], shard: Shard | None) -> None:
    """Refuse settings that contradict each other or the grid; raises `UsageError`."""
    settings = resolved.settings
    leave_out = "leave one of the two out"
    for key in sorted({key for cell in cells for key in cell.overrides} & resolved.named):
        raise UsageError(f"{option_name(key)} is given for all cells, and the grid gives it for some", hint=leave_out)
    _refuse_in_race(resolved, cells, shard)
    low, high = settings.repeats, settings.max_repeats
    if (high is None) != (settings.until_ci is None):
        raise UsageError("--repeats LOW..HIGH and --until-ci belong together", hint="give both, or --repeats N")
    if high is None:
        return
    if high < low:
        raise UsageError(f"--repeats must rise, got {low}..{high}")
    if len(cells) < 2:
        raise UsageError(
            "--until-ci compares cells with the first one, and there is only one cell",
            hint="give several, such as --temp 0.3,0.7, or --repeats N alone",
        )
    if shard is not None:
        message = "--until-ci decides by the rows of all conversations, and --shard runs only some of them"
        raise UsageError(message, hint=leave_out)


def _refuse_in_race(resolved: ResolvedSettings, cells: Sequence[Cell], shard: Shard | None) -> None:
    settings = resolved.settings
    if not settings.race:
        for key in ("race_margin", "race_level", "race_rows"):
            if key in resolved.named and getattr(settings, key) != RunSettings.model_fields[key].default:
                raise UsageError(
                    f"{option_name(key)} belongs to --race, which is not given", hint="give both or neither"
                )
        return
    if settings.until_ci is not None:
        raise UsageError(
            "--race and --until-ci both decide how many repetitions a cell gets", hint="leave one of the two out"
        )
    if shard is not None:
        raise UsageError(
            "--race decides by the rows of all conversations, and --shard runs only some of them",
            hint="leave one of the two out; --workers and --ray spread a race over processes and machines",
        )
    if len(cells) < 2:
        raise UsageError(
            "--race drops cells that are worse than another one, and there is only one cell",
            hint="give several, such as --temp 0.3,0.7",
        )


def with_endpoint(resolved: ResolvedSettings, cells: Sequence[Cell]) -> ResolvedSettings:
    """The settings; if a cell has an endpoint, with `concurrency` as the batch size.

    Raises:
        UsageError: a served model cannot have the settings, see `check_settings`.
    """
    settings, has_endpoint = resolved.settings, False
    for cell in cells:
        cell_settings = settings.replace(**cell.overrides)
        check_settings(cell_settings, resolved.named | cell.overrides.keys())
        has_endpoint |= cell_settings.endpoint is not None
    if not has_endpoint:
        refuse_without(("endpoint", "judge_url"), CLIENT_SETTINGS, settings, resolved.named)
        return resolved
    if settings.workers is not None or settings.devices or settings.ray is not None:
        raise UsageError(
            "--workers, --devices and --ray spread the work of a model over processes, and --endpoint has a server",
            hint="--concurrency N sends N requests at a time",
        )
    if "batch_size" in resolved.named:
        raise UsageError("--batch-size is of an engine, and --endpoint has a server", hint="give --concurrency N")
    return replace(resolved, settings=settings.replace(batch_size=settings.concurrency))


def check_plan(plan: Plan) -> None:
    """Check the settings of a plan's workers and judge, and the plan against its script; log needless repeats.

    Raises:
        UsageError: settings contradict each other, an interface cannot score the script, a race or `--until-ci` needs
            checks that the script does not have, or `--race-rows` is too small.
    """
    check_pool(plan.settings)
    check_interface(plan)
    _check_greetings(plan)
    judge_source(plan.settings, given=plan.explicit)
    if plan.settings.max_repeats is not None and not any(t.checks for c in plan.conversations for t in c.turns):
        raise UsageError("--until-ci compares the scores of checks, and the script has none")
    if plan.draws is not None:
        _check_race(plan)
    else:
        _warn_of_needless_repeats(plan)


def _check_greetings(plan: Plan) -> None:
    """Refuse an assistant message before the first user message where the template cannot write one."""
    greeting = next((c for c in plan.conversations if c.greeting is not None), None)
    if greeting is not None and any(
        cell.template is not None and (cell.endpoint is None or cell.endpoint_api != "chat")
        for cell in plan.cell_settings
    ):
        raise UsageError(f"{greeting.source}: {NO_GREETING}", hint=NO_GREETING_HINT)


def judge_remark(plan: Plan, source: JudgeSource | None) -> str | None:
    """What to say about a judge without rubrics, or rubrics without a judge."""
    has_rubrics = bool(turns_with_rubrics(plan.conversations))
    if source is not None:
        return None if has_rubrics else "a judge is given, and the script has no check `judge`"
    if not has_rubrics:
        return None
    return (
        "the script has checks that a judge answers, and none is given (--judge FILE, --judge-url URL): "
        "verdicts that do not exist yet stay missing; `rwkvbatch check RUN --judge FILE` adds them"
    )


def check_judge(plan: Plan) -> list[str]:
    """Check the judge that the settings name, without loading it or asking its server. Returns warnings.

    A file or a device that this machine lacks gives a warning, since another machine may have it.

    Raises:
        UsageError: a setting of the judge is wrong.
    """
    source = judge_source(plan.settings, given=plan.explicit)
    remark = judge_remark(plan, source)
    if source is None or remark is not None:
        return [] if remark is None else [remark]
    try:
        source.check(ask_server=False)
    except (InputError, MissingDeviceError) as error:
        return [str(error)]
    return []


def _check_race(plan: Plan) -> None:
    """Refuse a race without checks or with too few rows; log how many conversations cannot be drawn."""
    num_unchecked = sum(1 for c in plan.conversations if not any(turn.checks for turn in c.turns))
    if num_unchecked == len(plan.conversations):
        raise UsageError("--race compares the scores of checks, and the script has none")
    if num_unchecked:
        message = "--race leaves out %d of %d conversations, which have no checks"
        _log.warning(message, num_unchecked, len(plan.conversations))
    max_rows = plan.settings.race_rows
    min_rows = len(plan.cells) * sum(turns_of_draws(plan)[:FIRST_LOOK])
    if max_rows is not None and max_rows < min_rows:
        raise UsageError(
            f"--race-rows must be at least {min_rows:,}, the rows of the first {FIRST_LOOK} draws in "
            f"{len(plan.cells)} cells, before which nothing is decided; got {max_rows:,}"
        )


def _warn_of_needless_repeats(plan: Plan) -> None:
    """Log the cells in which repeats cannot differ because replies are greedy."""
    if plan.repeats == 1 or not (greedy := plan.greedy_cells()):
        return
    low, high = plan.settings.repeats, plan.settings.max_repeats
    if len(greedy) == len(plan.cells):
        where, remedy = " in any cell" if len(greedy) > 1 else "", "leave it out"
    else:
        where = f" in the cell{'s' if len(greedy) > 1 else ''} " + ", ".join(c.name for c in greedy[:CELLS_SHOWN])
        where += f" and {len(greedy) - CELLS_SHOWN} more" if len(greedy) > CELLS_SHOWN else ""
        remedy = "run such cells without it"
    _log.warning(
        "--repeats %s changes nothing%s: replies are greedy, so all repeats are the same; %s, "
        "or sample (--temp 1 --top-p 0.5, say)",
        *(low if high is None else f"{low}..{high}", where, remedy),
    )


def log_left_out(script: Script) -> None:
    """Log why each bad line was set aside, and the keys that are not read.

    After the first `SKIPPED_SHOWN` lines, the level is `info`.
    """
    for number, line in enumerate(script.skipped):
        level = logging.WARNING if number < SKIPPED_SHOWN else logging.INFO
        _log.log(level, "set aside: %s", line.error, extra={"path": line.source.path, "line": line.source.line})
    if len(script.skipped) > SKIPPED_SHOWN:
        _log.warning("set aside: %d lines more", len(script.skipped) - SKIPPED_SHOWN)
    if script.ignored:
        by_count = sorted(script.ignored.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{key} ({count:,})" for key, count in by_count[:KEYS_SHOWN])
        more = f" and {len(by_count) - KEYS_SHOWN} more" if len(by_count) > KEYS_SHOWN else ""
        _log.warning("keys that are not read, with their numbers of lines: %s%s", shown, more)


def log_lint(plan: Plan) -> None:
    """Log each probable mistake in the settings' system messages, and the number of those in the script."""
    for warning in lint_system(cell.system for cell in plan.cell_settings if cell.system is not None):
        _log.warning("%s", warning)
    counts = Counter(warning.code for warning in lint(plan.conversations))
    if counts:
        shown = ", ".join(f"{count:,} {code}" for code, count in counts.most_common())
        _log.warning("probable mistakes in the script, which change replies or scores: %s; --dry-run lists them", shown)
