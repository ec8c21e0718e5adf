"""The shortcut of a block as one op, in every form that runs here, to the bit of torch's own operations.

Legend: B batch, C channels, H height, W width.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdhm.benchmarks.harness import timing as harness
from fastdhm.ops import _extension
from fastdhm.ops.shortcut import shortcut
from views import VIEWS

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def run(x, channels, impl):
    """The result and the gradient of the same pseudo-random direction."""
    x = x.detach().requires_grad_()
    y = shortcut(x, channels, impl=impl)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, x, grad_y)]


def draw(shape, dtype):
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    return x.to(dtype, memory_format=torch.channels_last)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    more=st.integers(0, 40), dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_any_shape_has_the_bits_of_eager(simd, shape, more, dtype):
    x = draw(shape, dtype)
    for got, expected in zip(*(run(x, shape[1] + more, impl) for impl in ("cpp", "eager")), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e-40, 3e38])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_nan_and_subnormal_values_have_the_bits_of_eager(simd, dtype, value):
    x = draw((2, 20, 4, 5), dtype)
    x[1, 4, 1:3] = value
    for got, expected in zip(*(run(x, 32, impl) for impl in ("cpp", "eager")), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_strides(make):
    x = make(draw((4, 5, 6, 6), torch.float64))
    torch.testing.assert_close(run(x, 7, "cpp"), run(x, 7, "eager"), rtol=0, atol=0)


def test_any_number_of_threads_gives_the_same_bits():
    x, results = draw((9, 16, 31, 32), torch.bfloat16), []
    for number in (1, 2, 5):
        with harness.threads(number):
            results.append(run(x, 32, "cpp"))
    torch.testing.assert_close(results[1:], results[:1] * 2, rtol=0, atol=0)


def test_gradcheck():
    assert torch.autograd.gradcheck(
        lambda x: shortcut(x, 4, impl="cpp"), draw((2, 3, 5, 4), torch.float64).requires_grad_()
    )


@pytest.mark.parametrize("side", [1, 4, 5])
def test_opcheck(side):
    x = draw((3, 18, side, side), torch.float32)
    torch.library.opcheck(torch.ops.fastdhm.shortcut, (x.clone().requires_grad_(), 20))
    grad_y = torch.randn_like(torch.ops.fastdhm.shortcut(x, 20))
    torch.library.opcheck(torch.ops.fastdhm.shortcut_backward, (grad_y, x))


def test_in_a_compiled_function():
    x = draw((2, 16, 5, 4), torch.float32).requires_grad_()
    compiled = torch.compile(lambda x: shortcut(x, 32).square().sum(), fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(each(x), x)[0] for each in (compiled, lambda x: shortcut(x, 32).square().sum())]
    assert torch.equal(*grads)


def test_a_gradient_of_a_gradient_is_refused():
    x = draw((2, 4, 3, 3), torch.float32).requires_grad_()
    y = shortcut(x, 8, impl="cpp")
    (grad_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for fastdhm::shortcut_backward is not implemented"):
        grad_x.sum().backward()


@pytest.mark.parametrize(
    ("x", "channels", "message"),
    [
        (torch.zeros(2, 4, 3, 3, dtype=torch.float16), 8, "x is torch.float16.*must be float32, bfloat16 or float64"),
        (torch.zeros(2, 4), 8, r"x is \(2, 4\): must be \[B, C, H, W\]"),
        (torch.zeros(2, 4, 3, 3), 3, r"x is \(2, 4, 3, 3\): must be .* with C at most channels, 3"),
        (torch.zeros(0, 4, 3, 3), 8, r"x is .*\(0, 4, 3, 3\).*not empty"),
        (torch.zeros(2, 4, 3, 3, device="meta"), 8, "on meta"),
    ],
)
def test_inputs_that_cpp_cannot_take_are_refused(x, channels, message):
    with pytest.raises(ValueError, match=message):
        shortcut(x, channels, impl="cpp")


def test_auto_does_the_rest_by_eager():
    x = torch.randn(2, 4, 3, 3).half()
    assert torch.equal(shortcut(x, 8), shortcut(x, 8, impl="eager"))
    with pytest.raises(ValueError, match="unknown impl 'triton'.*known: auto, eager, cpp"):
        shortcut(x, 8, impl="triton")


@pytest.mark.parametrize(
    ("grad_y", "x"),
    [
        (torch.zeros(2, 8, 2, 2), torch.zeros(2, 4, 5, 3)),
        (torch.zeros(2, 3, 2, 2), torch.zeros(2, 4, 3, 3)),
        (torch.zeros(1, 8, 2, 2), torch.zeros(2, 4, 3, 3)),
        (torch.zeros(2, 8, 2, 2, dtype=torch.float64), torch.zeros(2, 4, 3, 3)),
    ],
)
def test_the_raw_op_reads_nothing_out_of_bounds(grad_y, x):
    with pytest.raises(ValueError, match="must be"):
        torch.ops.fastdhm.shortcut_backward(*(t.contiguous(memory_format=torch.channels_last) for t in (grad_y, x)))
    with pytest.raises(ValueError, match="must be"):
        torch.ops.fastdhm.shortcut(x[:, :, ::2], 8)
