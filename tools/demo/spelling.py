"""Families about letters and digits: copying, spelling backwards, first and last letters, upper case."""

from __future__ import annotations

from random import Random

from tools.demo.exchange import Exchange
from tools.demo.holdout import Key, Split, draw
from tools.demo.words import any_word

_COPY_WORD = ("Repeat: {}", "Say {}.", "Say the word {}.", "Copy this: {}", "Write {} once more.", "Please repeat {}.")
_COPY_DIGITS = ("Repeat: {}", "Copy the digits {}", "Say the digits {}", "Copy this: {}")
_REVERSE = ("Spell {} backwards.", "Write {} backwards.", "What is {} backwards?", "Reverse the word {}.")


def _word_key(word: str) -> Key:
    return ("word", word)


def copy_word(rng: Random, split: Split) -> Exchange:
    """One to three words said again."""
    drawn = [draw(rng, split, any_word, _word_key) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    text = " ".join(word for word, _ in drawn)
    return Exchange(
        "copying",
        rng.choice(_COPY_WORD).format(text),
        text,
        {"contains": text},
        tuple(key for _, key in drawn),
        thought=(text,),
    )


def _digits(rng: Random) -> str:
    length = rng.randint(3, 10)
    alphabet = rng.choice(("0123456789", "0123456789", "01", "357"))
    digits = [rng.choice(alphabet) for _ in range(length)]
    return (" " if rng.random() < 0.3 else "").join(digits)


def copy_digits(rng: Random, split: Split) -> Exchange:
    """A string of three to ten digits said again; strings over two digits repeat themselves much."""
    digits, key = draw(rng, split, _digits, lambda made: ("digits", made))
    return Exchange(
        "copying", rng.choice(_COPY_DIGITS).format(digits), digits, {"equals": digits}, (key,), thought=(digits,)
    )


def _echo(rng: Random) -> tuple[str, int]:
    return any_word(rng, 2, 4), rng.randint(2, 6)


def copy_times(rng: Random, split: Split) -> Exchange:
    """A short word said two to six times."""
    (word, times), key = draw(rng, split, _echo, lambda made: ("echo", *made))
    said = " ".join([word] * times)
    template = rng.choice(("Say {} {} times.", "Repeat {} {} times.", "Write {} {} times."))
    return Exchange("copying", template.format(word, times), said, {"equals": said}, (key,), thought=(f"{times}",))


def reverse(rng: Random, split: Split) -> Exchange:
    """A word of three to six letters spelt backwards."""
    word, key = draw(rng, split, lambda r: any_word(r, 3, 6), _word_key)
    return Exchange(
        "backwards",
        rng.choice(_REVERSE).format(word),
        word[::-1],
        {"equals": word[::-1]},
        (key,),
        thought=(" ".join(word), " ".join(word[::-1])),
    )


def letter(rng: Random, split: Split) -> Exchange:
    """The first or the last letter of a word."""
    word, key = draw(rng, split, any_word, _word_key)
    which = rng.choice(("first", "last"))
    found = word[0] if which == "first" else word[-1]
    template = rng.choice(("What is the {} letter of {}?", "Name the {} letter of {}.", "Which letter is {} in {}?"))
    return Exchange(
        "letters", template.format(which, word), found, {"equals": found}, (key,), thought=(" ".join(word),)
    )


def upper(rng: Random, split: Split) -> Exchange:
    """A word written in capitals."""
    word, key = draw(rng, split, any_word, _word_key)
    template = rng.choice(("Write {} in capitals.", "Write {} in upper case.", "Put {} in capital letters."))
    return Exchange(
        "letters", template.format(word), word.upper(), {"equals": word.upper()}, (key,), thought=(" ".join(word),)
    )
