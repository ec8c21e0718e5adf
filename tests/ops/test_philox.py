"""The generator against its authors' known answers, in Python and in C++, with each kind of integer it is used with."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdhm.ops import _extension, philox

WORD = st.integers(0, 2**32 - 1)

# Random123, tests/kat_vectors, "philox4x32 10": counter, key, answer.
KNOWN_ANSWERS = [
    pytest.param((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), id="zeros"),
    pytest.param((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD), id="ones"),
    pytest.param(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        id="pi",
    ),
]


def as_int(words):
    return tuple(int(word) for word in words)


def cpp_philox(counter, key):
    if not _extension.available():
        pytest.skip(_extension.reason())
    return tuple(_extension.require("this test").philox4x32(counter, key))


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
@pytest.mark.parametrize("integer", [int, np.int64, torch.tensor], ids=["int", "numpy", "torch"])
def test_known_answers_in_python(counter, key, answer, integer):
    with np.errstate(over="ignore"):  # the products wrap by design; numpy warns for scalars only
        assert as_int(philox.philox4x32(*map(integer, counter), *key)) == answer


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers_in_cpp(counter, key, answer):
    assert cpp_philox(counter, key) == answer


@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_python_torch_and_cpp_agree(counter, key):
    expected = philox.philox4x32(*counter, *key)
    assert as_int(philox.philox4x32(*map(torch.tensor, counter), *key)) == expected
    assert cpp_philox(counter, key) == expected


@given(index=WORD, step=st.integers(0, 2**64 - 1), stream=WORD, seed=st.integers(0, 2**64 - 1))
def test_draw_lays_out_the_counter(index, step, stream, seed):
    low, high = step % 2**32, step // 2**32
    assert philox.draw(index, step, stream, seed) == philox.philox4x32(
        index, low, high, stream, seed % 2**32, seed // 2**32
    )


def test_streams_do_not_meet():
    streams = (philox.STREAM_BRANCH_MASK, philox.STREAM_AUGMENT, philox.STREAM_ORDER)
    assert len({philox.draw(0, 0, stream, 0) for stream in streams}) == len(streams)
