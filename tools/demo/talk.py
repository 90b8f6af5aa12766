"""Families of plain talk: opposites, categories, small knowledge, greetings and courtesies."""

from __future__ import annotations

from random import Random

from tools.demo.exchange import Exchange
from tools.demo.holdout import Split, draw
from tools.demo.words import CAPITALS, CATEGORIES, NAMES, OPPOSITES, SOUNDS

_OPPOSITE = (
    "What is the opposite of {}?",
    "Opposite of {}?",
    "Tell me the opposite of {}.",
    "Name the opposite of {}.",
    "The opposite of {} is what?",
)
_CATEGORY = ("What is {}?", "What kind of thing is {}?", "Tell me what {} is.", "Which group does {} belong to?")
_CAPITAL = (
    "What is the capital of {}?",
    "Name the capital of {}.",
    "Capital of {}?",
    "Which city is the capital of {}?",
)
_SOUND = ("What does a {} say?", "Which sound does a {} make?", "What is the sound of a {}?", "How does a {} sound?")

_BOTH_WAYS = {**OPPOSITES, **{right: left for left, right in OPPOSITES.items()}}
_GROUP_OF = {member: group for group, members in CATEGORIES.items() for member in members}

GREETING_REPLIES = ("Hello!", "Hi!", "Hi there!", "Hello, how can I help?", "Good to see you!", "Welcome!")
_GREETINGS = ("Hello", "Hi", "Hey", "Hi there", "Good morning", "Good evening", "Hello there", "Greetings")
_COURTESIES = {
    "Thank you": ("You are welcome.", "My pleasure.", "No problem.", "Any time."),
    "Goodbye": ("Goodbye!", "See you soon!", "Take care!", "Bye!"),
    "How are you": ("I am fine, thank you.", "Very well.", "All is well here.", "Good, and you?"),
}


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def opposite(rng: Random, split: Split) -> Exchange:
    """The opposite of a word; held out are pairs of word and wording, since the words themselves are few."""
    (word, i), key = draw(
        rng,
        split,
        lambda r: (r.choice(sorted(_BOTH_WAYS)), r.randrange(len(_OPPOSITE))),
        lambda made: ("opposite", *made),
    )
    found = _BOTH_WAYS[word]
    return Exchange("opposites", _OPPOSITE[i].format(word), found, {"equals": found}, (key,), thought=(word,))


def category(rng: Random, split: Split) -> Exchange:
    """What kind of thing something is; held out are pairs of thing and wording."""
    (noun, i), key = draw(
        rng,
        split,
        lambda r: (r.choice(sorted(_GROUP_OF)), r.randrange(len(_CATEGORY))),
        lambda made: ("category", *made),
    )
    reply = f"{_article(noun)} is {_article(_GROUP_OF[noun])}.".capitalize()
    return Exchange(
        "categories",
        _CATEGORY[i].format(_article(noun)),
        reply,
        {"contains": _GROUP_OF[noun]},
        (key,),
        thought=(_GROUP_OF[noun],),
    )


def capital(rng: Random, split: Split) -> Exchange:
    """The capital of a country."""
    (country, i), key = draw(
        rng, split, lambda r: (r.choice(sorted(CAPITALS)), r.randrange(len(_CAPITAL))), lambda made: ("capital", *made)
    )
    return Exchange(
        "knowledge",
        _CAPITAL[i].format(country),
        CAPITALS[country] + ".",
        {"contains": CAPITALS[country]},
        (key,),
        thought=(country,),
    )


def sound(rng: Random, split: Split) -> Exchange:
    """The sound that an animal makes."""
    (animal, i), key = draw(
        rng, split, lambda r: (r.choice(sorted(SOUNDS)), r.randrange(len(_SOUND))), lambda made: ("sound", *made)
    )
    return Exchange(
        "knowledge",
        _SOUND[i].format(animal),
        SOUNDS[animal] + ".",
        {"contains": SOUNDS[animal]},
        (key,),
        thought=(animal,),
    )


def _greeting_text(rng: Random) -> str:
    ending = rng.choice(("!", ".", "", ", you!", " again!", ", friend!", f", {rng.choice(NAMES)}!"))
    return rng.choice(_GREETINGS) + ending


def greeting(rng: Random, split: Split) -> Exchange:
    """A greeting, which has several right replies, all equally likely."""
    text, key = draw(rng, split, _greeting_text, lambda made: ("greeting", made))
    return Exchange(
        "greetings",
        text,
        rng.choice(GREETING_REPLIES),
        {"one_of": list(GREETING_REPLIES)},
        (key,),
        thought=("be polite",),
        one_answer=False,
    )


def _courtesy_text(rng: Random) -> tuple[str, str]:
    kind = rng.choice(sorted(_COURTESIES))
    mark = "?" if kind == "How are you" else rng.choice(("!", "."))
    ending = rng.choice(("", " today", " then", " now", " my friend", f", {rng.choice(NAMES)}"))
    return kind, kind + ending + mark


def courtesy(rng: Random, split: Split) -> Exchange:
    """Thanks, goodbyes and how-are-yous, each with several right replies."""
    (kind, text), key = draw(rng, split, _courtesy_text, lambda made: ("courtesy", made[1]))
    replies = _COURTESIES[kind]
    return Exchange(
        "greetings",
        text,
        rng.choice(replies),
        {"one_of": list(replies)},
        (key,),
        thought=("be polite",),
        one_answer=False,
    )
