"""Coverage-guided fuzzing of tokens and text: `python -m tools.fuzz.fuzz_text [SECONDS] [FOLDER]`.

The first byte says what the rest is. Tokens: the pieces of a `TextStream` must join to what decoding them all at once
gives, up to the first stop text. Text: encoding and decoding give it back, and what is printable does nothing.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence

import atheris  # pyright: ignore[reportMissingImports]

from tools.fuzz.fuzzing import fuzz, instrumented

with instrumented("rwkvbatch"):
    from rwkvbatch.errors import InputError
    from rwkvbatch.prompt.escaping import printable
    from rwkvbatch.prompt.segments import clean
    from rwkvbatch.prompt.text_stream import TextStream, decode_utf8
    from rwkvbatch.prompt.tokenizer import world_tokenizer

_TOKENIZER = world_tokenizer()


def first_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop text that is complete first, and that stop text: looked for at every character."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def check_stream(pieces: Sequence[bytes], stops: Sequence[str]) -> None:
    """The stream over `pieces` against decoding and searching the whole."""
    stream = TextStream(pieces.__getitem__, stops)
    handed_out = "".join(stream.push(token) for token in range(len(pieces))) + stream.finish()
    expected, stop = first_stop(decode_utf8(b"".join(pieces)), stops)
    assert (handed_out, stream.text, stream.stopped_by) == (expected, expected, stop)
    assert stream.finish() == ""
    assert stream.held == ""


def check_text(text: str) -> None:
    """Encoding, cleaning and printing of `text`."""
    try:
        ids = _TOKENIZER.encode(text)
    except InputError:
        assert any(unicodedata.category(character) == "Cs" for character in text)
    else:
        assert _TOKENIZER.decode(ids) == text
    assert clean(clean(text)) == clean(text)
    assert not any(
        unicodedata.category(character) in ("Cc", "Cs") for character in printable(text) if character != "\n"
    )


def read_one(data: bytes) -> None:
    """One input; see above."""
    provider = atheris.FuzzedDataProvider(data)  # pyright: ignore[reportAttributeAccessIssue]
    kind = provider.ConsumeIntInRange(0, 2)
    if kind == 0:
        check_text(provider.ConsumeUnicode(200))
        return
    stops = [stop for _ in range(provider.ConsumeIntInRange(0, 3)) if (stop := provider.ConsumeUnicodeNoSurrogates(4))]
    count = provider.ConsumeIntInRange(0, 24)
    if kind == 1:
        check_stream([provider.ConsumeBytes(provider.ConsumeIntInRange(0, 5)) for _ in range(count)], stops)
    else:
        ids = [provider.ConsumeIntInRange(-1, 70000) for _ in range(count)]
        check_stream([_TOKENIZER.token_bytes(token) for token in ids], stops)
        assert _TOKENIZER.decode(ids) == decode_utf8(_TOKENIZER.decode_bytes(ids))


def main() -> None:
    """Fuzz; see `fuzz`."""
    seeds = {
        "text": "Grüße, 世界 👩‍🚀\n\n".encode(),
        "stops": b"\n\nUser:\n\n" + bytes(range(256)),
        "broken": b"\xff\xfe\xed\xa0\x80\xf4\x90\x80\x80\xc3",
    }
    fuzz(read_one, seeds, max_bytes=400, words=("\n\n", "User:", "\ud800", "\u202e", "\x1b[", "é", "👩"))


if __name__ == "__main__":
    sys.exit(main())
