"""The noise of sampling: Philox and Gumbel noise keyed by content."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rwkvbatch.model.ops import choosing as noise
from rwkvbatch.model.ops.choosing import gumbel, philox_4x32

# The known answers that the authors of Random123 publish with it (kat_vectors, philox4x32 10).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox_4x32(np.array([counter], dtype=np.uint32), key[0] | key[1] << 32)
    assert words[0].tolist() == list(expected)


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 1000),
    st.integers(0, 100_000),
    st.lists(st.integers(0, 70_000), min_size=1, unique=True),
)
def test_the_noise_of_a_token_does_not_depend_on_the_others(key: int, turn: int, step: int, tokens: list[int]) -> None:
    together = gumbel(key, turn, step, np.array(tokens))
    alone = [gumbel(key, turn, step, np.array([token]))[0] for token in tokens]
    assert together.tolist() == alone


def test_the_noise_is_minus_ln_minus_ln_of_the_middle_of_the_word_s_interval() -> None:
    words = philox_4x32(np.array([[1, 5, 4, 0]], dtype=np.uint32), 123)
    assert words.dtype == np.uint32
    uniform = (words[0].astype(np.float64) + 0.5) / 2**32
    assert gumbel(123, 4, 5, np.arange(4, 8)).tolist() == (-np.log(-np.log(uniform))).tolist()


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_the_largest_and_the_smallest_word_make_finite_noise(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "philox_4x32", lambda counter, key: np.full((len(counter), 4), word, np.uint32))
    assert np.isfinite(gumbel(1, 1, 1, np.arange(4))).all()


def test_the_noise_is_gumbel_distributed() -> None:
    assert stats.kstest(gumbel(123, 4, 5, np.arange(20_000)), stats.gumbel_r.cdf).pvalue > 1e-3


@pytest.mark.parametrize("changed", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_key_turn_and_step_all_matter(changed: tuple[int, int, int]) -> None:
    tokens = np.arange(100)
    assert not (gumbel(1, 1, 1, tokens) == gumbel(*changed, tokens)).any()
