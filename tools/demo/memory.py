"""Facts that the user tells and asks back some turns later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tools.demo.exchange import Exchange, Fact
from tools.demo.holdout import Split, draw
from tools.demo.words import CITIES, COLOURS, FOODS, NAMES, SHADES, any_word, proper


@dataclass(frozen=True)
class Slot:
    """One kind of fact: how it is told, acknowledged, asked and answered (`{}` is the value)."""

    name: str
    make: Callable[[Random], str]
    told: tuple[str, ...]
    noted: tuple[str, ...]
    asked: tuple[str, ...]
    answer: str


def _name(rng: Random) -> str:
    return proper(rng, NAMES)


def _city(rng: Random) -> str:
    return proper(rng, CITIES)


def _colour(rng: Random) -> str:
    return rng.choice(SHADES) + (rng.choice(COLOURS) if rng.random() < 0.7 else any_word(rng, 3, 6))


def _food(rng: Random) -> str:
    return rng.choice(FOODS) if rng.random() < 0.6 else any_word(rng, 3, 6)


def _number(rng: Random) -> str:
    return str(rng.randint(2, 999))


def _age(rng: Random) -> str:
    return str(rng.randint(5, 99))


def _word(rng: Random) -> str:
    return any_word(rng, 3, 7)


_NOTED = ("Got it.", "Noted.", "I will remember that.", "All right.")

SLOTS = (
    Slot(
        "name",
        _name,
        ("My name is {}.", "I am {}.", "Call me {}.", "Hi, I'm {}."),
        ("Nice to meet you, {}.",),
        ("What is my name?", "Who am I?", "Do you remember my name?"),
        "Your name is {}.",
    ),
    Slot(
        "city",
        _city,
        ("I live in {}.", "My home is in {}.", "I come from {}."),
        ("{} is a fine place.", *_NOTED),
        ("Where do I live?", "What is my city?", "Which place is my home?"),
        "You live in {}.",
    ),
    Slot(
        "colour",
        _colour,
        ("My favourite colour is {}.", "I like the colour {}.", "The colour I love is {}."),
        _NOTED,
        ("What is my favourite colour?", "Which colour do I like?"),
        "Your favourite colour is {}.",
    ),
    Slot(
        "number",
        _number,
        ("My lucky number is {}.", "Please remember the number {}.", "Keep the number {} in mind."),
        _NOTED,
        ("What is my number?", "Which number did I tell you?"),
        "Your number is {}.",
    ),
    Slot(
        "pet",
        _name,
        ("My dog is called {}.", "I have a dog named {}.", "The name of my dog is {}."),
        ("{} sounds lovely.", *_NOTED),
        ("What is my dog called?", "What is the name of my dog?"),
        "Your dog is called {}.",
    ),
    Slot(
        "food",
        _food,
        ("I like to eat {}.", "My favourite food is {}.", "I could eat {} every day."),
        _NOTED,
        ("What do I like to eat?", "What is my favourite food?"),
        "You like to eat {}.",
    ),
    Slot(
        "friend",
        _name,
        ("My best friend is {}.", "I have a good friend, {}.", "My friend is called {}."),
        _NOTED,
        ("Who is my best friend?", "What is my friend called?"),
        "Your friend is {}.",
    ),
    Slot(
        "age",
        _age,
        ("I am {} years old.", "My age is {}.", "I turned {} today."),
        _NOTED,
        ("How old am I?", "What is my age?"),
        "You are {} years old.",
    ),
    Slot(
        "secret",
        _word,
        ("The secret word is {}.", "Remember the word {}.", "Our code word is {}."),
        _NOTED,
        ("What is the secret word?", "Which word did I tell you?"),
        "The word is {}.",
    ),
)


def fact(rng: Random, split: Split, slot: Slot) -> Fact:
    """A fact of the given kind; the acknowledgement may be worded in several ways, the answer only in one."""
    value, key = draw(rng, split, slot.make, lambda made: ("fact", slot.name, made))
    noted = rng.choice(slot.noted)
    told = Exchange("memory", rng.choice(slot.told).format(value), noted.format(value), None, (key,), one_answer=False)
    answer = slot.answer.format(value)
    asked = Exchange(
        "memory", rng.choice(slot.asked), answer, {"contains": value}, (key,), thought=(f"{slot.name}: {value}",)
    )
    return Fact(told, asked)
