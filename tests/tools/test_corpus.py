"""The generated conversations: split, determinism, token weights."""

from random import Random

import pytest

from tools.demo.checking import passes
from tools.demo.corpus import FAMILIES, PROMPT_WEIGHT, batch, conversation, segments_of, tokens_of
from tools.demo.evaluation import answer_of
from tools.demo.holdout import draw, is_held_out
from tools.demo.vocabulary import VOCAB_SIZE, decode, encode


def _many(split: str, count: int) -> list:
    rng = Random(5)
    return [conversation(rng, split, 400) for _ in range(count)]


def test_training_conversations_hold_no_held_out_value() -> None:
    for made in _many("train", 400):
        assert not any(is_held_out(key) for exchange in made.exchanges for key in exchange.keys)
        assert made.system is None or not any(is_held_out(key) for key in made.system.keys)


def test_evaluation_conversations_are_of_held_out_values_only() -> None:
    for made in _many("held_out", 100):
        assert all(is_held_out(key) for exchange in made.exchanges for key in exchange.keys)


def test_every_family_marks_its_values() -> None:
    for family, _ in FAMILIES:
        assert family(Random(1), "train").keys


def test_about_an_eighth_of_the_sums_is_held_out() -> None:
    held = sum(is_held_out(("sum", a, b)) for a in range(1, 41) for b in range(a, 41))
    assert 0.09 < held / 820 < 0.16


def test_a_pool_without_values_in_the_split_is_reported() -> None:
    key = next(("sum", a, 1) for a in range(100) if not is_held_out(("sum", a, 1)))
    with pytest.raises(RuntimeError, match="held_out"):
        draw(Random(0), "held_out", lambda _: 0, lambda _: key)


def test_every_reply_passes_its_own_check() -> None:
    for made in _many("train", 300):
        for exchange in made.exchanges:
            if exchange.expect is not None:
                written = segments_of(exchange, made.think)[1]
                assert passes(answer_of(written, made.think), exchange.expect), exchange


def test_a_reply_that_differs_fails_its_check() -> None:
    for made in _many("train", 100):
        for exchange in made.exchanges:
            if exchange.expect is not None:
                assert not passes("quite another thing", exchange.expect), exchange


def test_a_batch_depends_on_step_and_seed_alone() -> None:
    first = batch(3, 7, 4, 256)
    batch(4, 7, 4, 256)
    assert batch(3, 7, 4, 256) == first
    assert batch(4, 7, 4, 256) != first
    assert batch(3, 8, 4, 256) != first


def test_weights_are_full_on_replies_and_small_on_prompts() -> None:
    rng = Random(2)
    made = conversation(rng, "train", 300, "off")
    tokens = tokens_of(made, closed=True)
    assert len(tokens.ids) == len(tokens.weights)
    full = decode([i for i, w in zip(tokens.ids, tokens.weights, strict=True) if w == 1.0])
    assert full == "".join(segments_of(exchange, "off")[1] for exchange in made.exchanges)
    assert set(tokens.weights) == {1.0, PROMPT_WEIGHT}


@pytest.mark.parametrize("think", ["on", "short", "long", "fake"])
def test_scratchpads_hold_no_blank_line(think: str) -> None:
    rng = Random(3)
    for _ in range(50):
        made = conversation(rng, "train", 400, think)
        for exchange in made.exchanges:
            prompt, written = segments_of(exchange, think)
            assert prompt.endswith("</think" if think == "fake" else "<think")
            assert written.startswith(">\n")
            assert "\n\n" not in written.removesuffix("\n\n")


def test_decoding_encoded_text_gives_it_back_within_the_vocabulary() -> None:
    for text in ("User: What's 3 + 4?\n\nAssistant:", " Größe 日本\n\n", "a  b\t\n", ""):
        ids = encode(text)
        assert decode(ids) == text
        assert all(0 < i < VOCAB_SIZE for i in ids)
