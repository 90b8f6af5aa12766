"""Drawing a growing text: the screen shows all of it once, for any pieces, windows and resizes."""

from __future__ import annotations

import itertools
import re
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.text import Text

from rwkvbatch.chat.live import MARKDOWN, THINKING, LiveText
from tests.chat.screen import ScreenFile

SAMPLE = """# A title

A paragraph with **bold words**, `code` and a line that is long enough to be wrapped at forty columns.
Its second line stays a line.

1. one
2. two
   - nested
5. five

```python
def f(x):
    return "a\\n\\nb"  # a comment that is longer than the window is wide, so it wraps

f(1)
```
After the code.
| a | b |
|---|---|
| 1 | 2 |

> quoted 日本語テキスト and e\u0301 combining

The end, with <tags>, &amp; and \\(x\\).
"""


def draw(pieces: list[str], columns: int, rows: int, *, status: bool = True) -> ScreenFile:
    file = ScreenFile(columns, rows)
    live = LiveText(file.console(), MARKDOWN)
    for piece in pieces:
        live.push(piece)
        live.draw(Text("writing") if status else None)
    live.finish()
    return file


def split(text: str, positions: list[int]) -> list[str]:
    bounds = [0, *sorted({position % len(text) for position in positions}), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


@cache
def lines_of_sample(columns: int, rows: int) -> list[str]:
    return draw([SAMPLE], columns, rows).lines()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2000), max_size=60), st.sampled_from([(40, 24), (80, 30), (100, 50)]))
def test_any_pieces_show_the_same_lines(positions: list[int], size: tuple[int, int]) -> None:
    assert draw(split(SAMPLE, positions), *size).lines() == lines_of_sample(*size)


def test_single_characters_show_the_same_lines() -> None:
    assert draw(list(SAMPLE), 50, 30).lines() == draw([SAMPLE], 50, 30, status=False).lines()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(["word", "日本", "**b**", "`c`", "- x", "\n", "\n\n", "```\n", " ", "1. y", "x" * 30, "# h"])
    ),
    st.integers(12, 40),
    st.integers(4, 12),
)
def test_every_word_is_shown_once_in_a_small_window(words: list[str], columns: int, rows: int) -> None:
    pieces = [f"{word}{number} " for number, word in enumerate(words)]
    shown = "".join("".join(draw(pieces, columns, rows).lines()).split())
    expected = re.findall(r"\d+", "".join(pieces))
    digits = re.findall(r"\d+", shown)
    # Digits are joined, because narrow rows break numbers.
    assert "".join(digits) == "".join(expected)


@pytest.mark.parametrize("rows", [5, 8, 12])
def test_a_text_longer_than_the_window_is_complete_in_the_scrollback(rows: int) -> None:
    text = " ".join(f"w{number}" for number in range(400))
    shown = draw([f"{word} " for word in text.split()], 30, rows).lines()
    assert " ".join(" ".join(shown).split()) == text
    assert all(len(line) < 30 for line in shown)


def test_code_longer_than_the_window_is_shown_as_code() -> None:
    code = "".join(f"    value_{number} = **kwargs\n" for number in range(60))
    text = f"```python\n{code}```\nend"
    shown = [line.strip() for line in draw([f"{line}\n" for line in text.split("\n")], 50, 10).lines()]
    assert shown == [f"value_{number} = **kwargs" for number in range(60)] + ["end"]


def test_only_changed_rows_are_written_again() -> None:
    file = ScreenFile(80, 24)
    live = LiveText(file.console(), MARKDOWN)
    live.push("first line\n\n" + "second line, long enough. " * 10)
    live.draw()
    file.written.clear()
    live.push("more")
    live.draw()
    (written,) = file.written
    assert "first line" not in written
    assert len(written) < 160


def test_nothing_is_written_when_nothing_changed() -> None:
    file = ScreenFile(80, 24)
    live = LiveText(file.console(), MARKDOWN)
    live.push("text")
    live.draw(Text("status"))
    file.written.clear()
    live.draw(Text("status"))
    assert not file.written


def draw_resized(words: list[str], sizes: list[tuple[int, int]], *, start: tuple[int, int] = (50, 16)) -> ScreenFile:
    """Draw the words one by one, each after a resize of the window, on which the terminal rewraps its lines."""
    file, size = ScreenFile(*start), start
    live = LiveText(file.console(), MARKDOWN, size=lambda: size)
    for word, new_size in zip(words, sizes, strict=True):
        if new_size != size:
            file.reflow(*new_size)
            size = new_size
        live.push(word)
        live.draw(Text("status"))
    live.finish()
    return file


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([" ", " ", "\n", "\n\n", "\n- ", "\n```\n"]),
            st.sampled_from([(50, 16), (50, 9), (30, 16), (22, 12), (80, 30)]),
        ),
        max_size=60,
    )
)
@example([(" ", (50, 16))] * 6 + [(" ", (22, 12))])
@example(
    [
        *[(" ", (50, 16))] * 5, ("\n```\n", (50, 16)), *[(" ", (50, 16))] * 4, ("\n```\n", (50, 16)),
        (" ", (50, 16)), (" ", (22, 12)),
    ]
)  # fmt: skip
def test_a_resize_loses_and_breaks_no_word(steps: list[tuple[str, tuple[int, int]]]) -> None:
    pieces = [f"w{number}w{separator}" for number, (separator, _) in enumerate(steps)]
    shown = " ".join(draw_resized(pieces, [size for _, size in steps]).lines())
    assert "status" not in shown
    words = [word for word in shown.split() if word not in ("\u2022", "-", "```")]
    num_shown = 0
    for word in words:
        assert re.fullmatch(r"w\d+w", word), word
        # Rows that stay after a resize are repeated; none is skipped.
        assert int(word[1:-1]) <= num_shown
        num_shown = max(num_shown, int(word[1:-1]) + 1)
    assert num_shown == len(steps)


def test_a_line_being_drawn_during_a_resize_stays_whole() -> None:
    line = "one two three four five six seven eight nine ten"
    words = [f"{word} " for word in line.split()]
    for at in range(1, len(words)):
        sizes = [(50, 16)] * at + [(60, 20)] * (len(words) - at)
        assert draw_resized(words, sizes).lines() == [line]
    (first, second) = draw_resized(words, [(50, 16)] * 4 + [(30, 16)] * 6).lines()
    assert f"{first} {second}" == line


def test_a_row_that_no_longer_fits_is_repeated() -> None:
    words = ["one two three four five ", "six"]
    assert draw_resized(words, [(50, 16), (18, 16)]).lines() == [
        "one two three four five",
        "one two three",
        "four five six",
    ]


def test_a_window_resized_below_the_drawn_lines_loses_none() -> None:
    words = [f"line {number}\n" for number in range(10)]
    shown = draw_resized(words, [(50, 16)] * 9 + [(50, 5)]).lines()
    assert shown == [f"line {number}" for number in range(10)]


def test_words_that_are_wider_than_their_column_of_a_table_are_folded() -> None:
    url, name = "https://example.com/" + "a" * 60, "日本語の長い文字列"
    file = ScreenFile(30, 24)
    live = LiveText(file.console(), MARKDOWN)
    live.push(f"| name | link |\n|---|---|\n| {name} | {url} |\n")
    live.finish()
    shown = "".join("".join(file.lines()).split())
    assert set(name) <= set(shown)
    assert sum(shown.count(letter) for letter in "a") >= 60
    assert "…" not in shown


def test_a_table_is_repeated_whole_after_a_resize() -> None:
    words = ["| a | b |\n|---|---|\n", "| one | two |\n", "| three | four |\n"]
    shown = draw_resized(words, [(50, 16), (50, 16), (40, 16)]).lines()
    assert [line.split() for line in shown if "one" in line] == [["one", "two"], ["one", "two"]]
    assert shown[-1].split() == ["three", "four"]


def test_thinking_is_not_rendered_as_markdown() -> None:
    file = ScreenFile(40, 24)
    live = LiveText(file.console(), THINKING)
    for piece in ["# not a title\n", "\n* not", " a list\n", "end"]:
        live.push(piece)
        live.draw()
    live.finish()
    assert file.lines() == ["# not a title", "", "* not a list", "end"]
