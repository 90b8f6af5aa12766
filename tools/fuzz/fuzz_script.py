"""Coverage-guided fuzzing of the script reader: `python -m tools.fuzz.fuzz_script [SECONDS] [FOLDER]`.

Every file must be read, or end in an error that names it and the line. What was read must go all the way: lint, the
prompt, the tokens, the checks. Setting bad lines aside must give the same conversations as a file without them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tools.fuzz.fuzzing import fuzz, instrumented

with instrumented("rwkvbatch"):
    from rwkvbatch.config import ScriptLimits
    from rwkvbatch.errors import ScriptError, UsageError
    from rwkvbatch.prompt.templates import OfficialTemplate
    from rwkvbatch.prompt.tokenizer import world_tokenizer
    from rwkvbatch.script.checks import judge_all
    from rwkvbatch.script.lint import lint
    from rwkvbatch.script.reader import Script, read_scripts
    from rwkvbatch.script.records import ReplyFacts

MAX_BYTES = 1 << 12
_LIMITS = ScriptLimits(max_line_bytes=2000, max_turns=8, max_conversations=6)
_DATASETS = Path(__file__).parents[2] / "datasets"
_TEMPLATE = OfficialTemplate()
_TOKENIZER = world_tokenizer(257)
_REPLIES = (ReplyFacts("Ada", "stop", 1), ReplyFacts('<think>no</think>{"a": [1, 2.5]} 42', "length", 9, "Ada 42"))
_WORDS = (
    *('"messages"', '"role"', '"content"', '"user"', '"assistant"', '"system"', '"expect"', '"params"', '"id"'),
    *('"turns"', '"reference"', '"conversations"', '"from"', '"value"', '"human"', '"gpt"', '"custom_id"', '"body"'),
    *('"defaults"', '"tags"', '"temperature"', '"stop"', '"seed"', '"weight"', '"question_id"', '"max_tokens"'),
    *('{"contains":', '{"regex":', '{"json":', '{"number":', '{"similarity":', '{"any":[', '{"all":[', '{"not":'),
    *('{"one_of":[', '{"equals":', '{"starts_with":', '{"finish":', '"ignore_case":true', "\r\n", "\ufeff", "\ud800"),
    *("\\ud800", "1e999", "NaN", "-0", "null", "[[[[", '{"', '"}', "]}]}"),
)


class _OneFile:
    """A file in memory: one of its own for each of thousands of inputs a second would be mostly waiting."""

    def __init__(self) -> None:
        self.path = str(Path("/dev/shm") / f"rwkvbatch-fuzz-script-{os.getpid()}.jsonl")

    def read_one(self, data: bytes) -> None:
        """One input; see above."""
        Path(self.path).write_bytes(data)
        try:
            strict = self._read(skip_bad=False)
            lenient = self._read(skip_bad=True)
        finally:
            Path(self.path).unlink()
        if strict is not None:
            assert lenient is not None
            assert (lenient.conversations, lenient.skipped) == (strict.conversations, ())
        if lenient is not None:
            check_way_to_the_model(lenient)

    def _read(self, *, skip_bad: bool) -> Script | None:
        try:
            return read_scripts([self.path], limits=_LIMITS, skip_bad=skip_bad)
        except (ScriptError, UsageError) as error:
            if self.path not in str(error):
                raise AssertionError("the message does not name the file") from error
            return None


def check_way_to_the_model(script: Script) -> None:
    """What a run does with a script, but for the model."""
    for warning in lint(script.conversations):
        assert str(warning).isprintable()
    for conversation in script.conversations:
        assert conversation.id.isprintable()
        texts = [_TEMPLATE.opening(conversation.system, None)]
        for turn in conversation.turns:
            texts += [_TEMPLATE.turn(turn.user), _TEMPLATE.reply(turn.reference or "")]
            for facts in _REPLIES:
                assert 0 <= judge_all(turn.checks, facts).score <= 1
        for text in texts:
            assert _TOKENIZER.decode(_TOKENIZER.encode(text)) == text


def main() -> None:
    """Fuzz; see `fuzz`."""
    seeds: dict[str, bytes] = {}
    for file in sorted(_DATASETS.glob("**/*.jsonl")):
        lines = file.read_bytes().splitlines(keepends=True)
        seeds |= {f"{file.stem}-{at}": b"".join(lines[at : at + 2]) for at in range(0, min(len(lines), 12), 2)}
    # Some patterns have a deadline of a second, and two replies are matched.
    fuzz(_OneFile().read_one, seeds, max_bytes=MAX_BYTES, words=_WORDS, seconds_an_input=30)


if __name__ == "__main__":
    sys.exit(main())
