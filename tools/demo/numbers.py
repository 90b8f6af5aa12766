"""Families about numbers: small sums, long sums that need a scratchpad, comparing, counting."""

from __future__ import annotations

from random import Random

from tools.demo.exchange import Exchange
from tools.demo.holdout import Key, Split, draw

_SUM = ("What is {} + {}?", "What is {} plus {}?", "{} + {} =", "Add {} and {}.", "How much is {} plus {}?")


def _sum_key(pair: tuple[int, int]) -> Key:
    return ("sum", min(pair), max(pair))


def _small_pair(rng: Random) -> tuple[int, int]:
    top = rng.choice((9, 20, 40))
    return rng.randint(1, top), rng.randint(1, top)


def small_sum(rng: Random, split: Split) -> Exchange:
    """Two numbers of at most 40 added; a pair is held out in both orders and all wordings."""
    (a, b), key = draw(rng, split, _small_pair, _sum_key)
    return Exchange(
        "sums", rng.choice(_SUM).format(a, b), str(a + b), {"number": a + b}, (key,), thought=column_addition(a, b)
    )


def column_addition(a: int, b: int) -> tuple[str, ...]:
    """Written addition from the last digit on: one line a column, the carry as its last summand."""
    lines, carry, rest_a, rest_b = [f"{a}+{b}"], 0, a, b
    while rest_a or rest_b:
        x, y = rest_a % 10, rest_b % 10
        total = x + y + carry
        lines.append(f"{x}+{y}+{carry}={total}")
        carry, rest_a, rest_b = total // 10, rest_a // 10, rest_b // 10
    return (*lines, str(a + b))


def _long_pair(rng: Random) -> tuple[int, int]:
    return rng.randint(100, 999), rng.randint(100, 999)


def long_sum(rng: Random, split: Split) -> Exchange:
    """Two three-digit numbers added."""
    (a, b), key = draw(rng, split, _long_pair, _sum_key)
    return Exchange(
        "long-sums", rng.choice(_SUM).format(a, b), str(a + b), {"number": a + b}, (key,), thought=column_addition(a, b)
    )


def _unequal_pair(rng: Random) -> tuple[int, int]:
    a = rng.randint(1, 99)
    return a, rng.choice([b for b in (rng.randint(1, 99), a - 1, a + 1, a + 10) if b != a and b > 0])


def compare(rng: Random, split: Split) -> Exchange:
    """The larger or the smaller of two numbers."""
    (a, b), key = draw(rng, split, _unequal_pair, lambda pair: ("compare", min(pair), max(pair)))
    word, found = rng.choice((("larger", max(a, b)), ("smaller", min(a, b))))
    template = rng.choice(("Which is {}, {} or {}?", "Which number is {}: {} or {}?"))
    return Exchange(
        "numbers",
        template.format(word, a, b),
        str(found),
        {"equals": str(found)},
        (key,),
        thought=(f"{min(a, b)} < {max(a, b)}",),
    )


def successor(rng: Random, split: Split) -> Exchange:
    """The number after or before a given one."""
    n, key = draw(rng, split, lambda r: r.randint(1, 199), lambda made: ("next", made))
    after = rng.random() < 0.5
    template = rng.choice(
        ("What comes after {}?", "Which number follows {}?")
        if after
        else ("What comes before {}?", "Which number precedes {}?")
    )
    found = str(n + 1 if after else n - 1)
    return Exchange("numbers", template.format(n), found, {"equals": found}, (key,), thought=(f"{n}",))


def _range(rng: Random) -> tuple[int, int]:
    start = rng.randint(1, 40)
    return start, start + rng.randint(2, 7)


def count(rng: Random, split: Split) -> Exchange:
    """Counting up from one number to another."""
    (start, stop), key = draw(rng, split, _range, lambda made: ("count", *made))
    said = " ".join(str(n) for n in range(start, stop + 1))
    template = rng.choice(("Count from {} to {}.", "Say the numbers from {} to {}."))
    return Exchange(
        "numbers", template.format(start, stop), said, {"equals": said}, (key,), thought=(f"{start} to {stop}",)
    )
