"""The mask: the same bits from every form, the stated probabilities, no state, and clear refusals. S: side branches."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from fastdhm.ops import _extension, philox
from fastdhm.ops.branch_mask import branch_mask

needs_cpp = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))
IMPLS = ["eager", pytest.param("cpp", marks=needs_cpp)]

SEEDS = st.integers(0, 2**64 - 1)
STEPS = st.integers(0, 2**63 - 1)
PROBS = st.lists(st.floats(0, 1, width=32), max_size=9)


def mask_by_rule(probs, seed, step):
    """The rule in Python integers and exact comparison, from nothing that the op uses but the generator."""
    words = [philox.draw(s, step, philox.STREAM_BRANCH_MASK, seed)[0] for s in range(len(probs))]
    return [word < prob * 2**32 for word, prob in zip(words, probs, strict=True)]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(probs=PROBS, seed=SEEDS, step=STEPS)
def test_bits_follow_the_rule(impl, dtype, probs, seed, step):
    probs_S = torch.tensor(probs, dtype=dtype)
    expected = mask_by_rule(probs_S.tolist(), seed, step)
    assert branch_mask(probs_S, seed, step, impl=impl).tolist() == expected
    assert branch_mask(probs_S, seed, torch.tensor(step), impl=impl).tolist() == expected


@pytest.mark.parametrize("impl", IMPLS)
@given(seed=SEEDS, step=STEPS, branch=st.integers(0, 4))
def test_threshold_is_exact(impl, seed, step, branch):
    """A probability of word / 2**32 is just too little for that word, and the next one just enough."""
    word = philox.draw(branch, step, philox.STREAM_BRANCH_MASK, seed)[0]
    for prob, expected in [(word / 2**32, False), ((word + 1) / 2**32, True)]:
        probs_S = torch.full((branch + 1,), prob, dtype=torch.float64)
        assert branch_mask(probs_S, seed, step, impl=impl)[branch].item() is expected


@pytest.mark.parametrize("impl", IMPLS)
def test_zero_is_never_and_one_is_always(impl):
    probs_S = torch.tensor([0.0, 1.0]).repeat(500)
    for step in range(20):
        assert torch.equal(branch_mask(probs_S, 7, step, impl=impl), probs_S.bool())


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_probabilities(impl):
    probs_S = torch.rand(22, generator=torch.Generator().manual_seed(0))[::2]
    assert torch.equal(branch_mask(probs_S, 1, 2, impl=impl), branch_mask(probs_S.contiguous(), 1, 2, impl="eager"))


@pytest.mark.parametrize("impl", IMPLS)
def test_no_branches(impl):
    mask_S = branch_mask(torch.empty(0), 0, 0, impl=impl)
    assert mask_S.shape == (0,)
    assert mask_S.dtype == torch.bool


@pytest.fixture(scope="module")
def draws_TS():
    """Masks of four branches over 20,000 consecutive steps, and the probabilities."""
    probs_S = torch.tensor([0.1, 0.5, 0.5, 0.9])
    return torch.stack([branch_mask(probs_S, 20200615, step) for step in range(20_000)]), probs_S.double().tolist()


def test_the_eight_patterns_of_three_branches_are_equally_frequent():
    """Jointly, not only in pairs: chi-square with 7 degrees of freedom passes 29.9 once in 10,000 tries."""
    masks_TS = torch.stack([branch_mask(torch.full((3,), 0.5), 5, step) for step in range(8000)])
    counts = torch.bincount((masks_TS * torch.tensor([1, 2, 4])).sum(1), minlength=8)
    assert ((counts - 1000).double().square() / 1000).sum() < 29.9


def assert_binomial(hits, trials, prob):
    """Within 4.5 standard deviations: a true coin fails once in 150,000 tries; the seed is fixed, there is one try."""
    assert abs(hits - trials * prob) <= 4.5 * math.sqrt(trials * prob * (1 - prob))


def test_each_branch_has_its_probability(draws_TS):
    masks_TS, probs = draws_TS
    for hits, prob in zip(masks_TS.sum(0).tolist(), probs, strict=True):
        assert_binomial(hits, len(masks_TS), prob)


def test_branches_are_pairwise_independent(draws_TS):
    masks_TS, probs = draws_TS
    for a, b in itertools.combinations(range(len(probs)), 2):
        assert_binomial(int((masks_TS[:, a] & masks_TS[:, b]).sum()), len(masks_TS), probs[a] * probs[b])


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 256])
def test_steps_are_pairwise_independent(draws_TS, lag):
    masks_TS, probs = draws_TS
    # Pairs (t, t + lag) that share no step, so that the count is binomial.
    first_T = torch.arange(len(masks_TS) - lag)
    first_T = first_T[first_T % (2 * lag) < lag]
    for s, prob in enumerate(probs):
        hits = int((masks_TS[first_T, s] & masks_TS[first_T + lag, s]).sum())
        assert_binomial(hits, len(first_T), prob**2)


def test_neighbouring_seeds_are_independent():
    probs_S = torch.full((2000,), 0.5)
    masks = [branch_mask(probs_S, seed, 0) for seed in (0, 1, 2, 2**32, 2**63)]
    for a, b in itertools.combinations(masks, 2):
        assert_binomial(int((a & b).sum()), len(probs_S), 0.25)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_global_generator_is_touched(impl):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first_S = branch_mask(torch.full((5,), 0.5), 3, 4, impl=impl)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(branch_mask(torch.full((5,), 0.5), 3, 4, impl=impl), first_S)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("as_step", "backend"), [(torch.tensor, "inductor"), (int, "aot_eager")], ids=["tensor", "int"]
)
def test_compiles_without_breaks(impl, as_step, backend, request):
    """And not again for every step: a tensor compiles once; an int may first be taken for a constant."""
    if backend == "inductor":
        request.getfixturevalue("compiler")
    probs_S, seed = torch.tensor([0.2, 0.5, 0.8]), 2**64 - 5
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(lambda step: branch_mask(probs_S, seed, step, impl=impl), backend=counter, fullgraph=True)
    for step in [2, 3, 2**40 + 3, 2**40 + 4, 2**63 - 1]:
        assert torch.equal(compiled(as_step(step)), branch_mask(probs_S, seed, step, impl="eager"))
    assert counter.frame_count <= (1 if backend == "inductor" else 2)


@needs_cpp
def test_opcheck():
    for probs_S in [torch.tensor([0.2, 0.5, 0.8]), torch.rand(8, dtype=torch.float64)[::2], torch.empty(0)]:
        torch.library.opcheck(torch.ops.fastdhm.branch_mask, (probs_S, -3, torch.tensor(5)))


HALF = torch.full((3,), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((HALF[None], 0, 0), r"shape \(1, 3\): must be a floating tensor of one dimension"),
        ((HALF.long(), 0, 0), r"a torch.int64 tensor .* must be a floating tensor"),
        (([0.5], 0, 0), r"\[0.5\]: must be a floating tensor"),
        ((torch.tensor([0.5, 1.5]), 0, 0), r"probs_S\[1\] is 1.5: must be in \[0, 1\]"),
        ((torch.tensor([-0.5, 0.5]), 0, 0), r"probs_S\[0\] is -0.5"),
        ((torch.tensor([0.5, math.nan]), 0, 0), r"probs_S\[1\] is nan"),
        ((HALF, -1, 0), r"seed is -1: must be in \[0, 2\*\*64\)"),
        ((HALF, 2**64, 0), r"seed is 18446744073709551616"),
        ((HALF, 0.5, 0), r"seed is 0.5: must be an int"),
        ((HALF, 0, -1), r"step is -1: must be in \[0, 2\*\*63\)"),
        ((HALF, 0, 2**63), r"step is 9223372036854775808"),
        ((HALF, 0, 1.0), r"step is 1.0: must be an int"),
        ((HALF, 0, torch.zeros(1, dtype=torch.int64)), r"shape \(1,\): must be an int or an int64 tensor"),
        ((HALF, 0, torch.tensor(0, dtype=torch.int32)), r"torch.int32 tensor .* int64"),
        ((HALF, 0, torch.tensor(0, device="meta")), r"step is on meta and probs_S on cpu: must be on one device"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        branch_mask(*arguments)


def test_refuses_an_impl_it_does_not_have():
    with pytest.raises(ValueError, match="unknown impl 'triton'.*known: auto, eager, cpp, cuda"):
        branch_mask(HALF, 0, 0, impl="triton")


@needs_cpp
def test_refuses_a_device_that_the_impl_does_not_run_on():
    with pytest.raises(ValueError, match="impl='cpp' runs on the CPU"):
        branch_mask(HALF.to("meta"), 0, 0, impl="cpp")
