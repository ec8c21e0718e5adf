"""Convolutions with our own gradients, in every form that runs here, against torch's own.

Legend: B batch, C channels in, K channels out, H height, W width, R x S kernel.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from convolutions import differentiated, error, skip_unless_taken
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdhm.benchmarks.harness import timing as harness
from fastdhm.ops import _convolution, _extension
from fastdhm.ops._convolution import NAMES
from fastdhm.ops.conv2d import conv2d, pays
from views import VIEWS

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))
# B, C, K, H, W, kernel, stride, padding: one pixel, an odd number of images, odd sides, strides that divide the sides
# or not, that are larger than the kernel, that differ; one to four vectors of channels and runs of them; blocks of
# whole images, with fewer in the last, and of some rows; sums in sets and in one
SHAPES = [
    (1, 16, 16, 1, 1, (1, 1), (1, 1), (0, 0)),
    (3, 16, 32, 7, 9, (3, 3), (2, 2), (1, 1)),
    (2, 32, 16, 8, 8, (1, 1), (2, 2), (0, 0)),
    (2, 48, 80, 5, 6, (1, 1), (3, 2), (0, 0)),
    (5, 16, 112, 9, 4, (5, 3), (2, 3), (2, 1)),
    (2, 112, 16, 6, 11, (2, 4), (1, 2), (0, 3)),
    (2, 16, 16, 11, 40, (7, 7), (2, 2), (3, 3)),
    (9, 16, 16, 40, 18, (3, 3), (1, 1), (1, 1)),
    (70, 32, 48, 4, 4, (3, 3), (2, 2), (1, 1)),
    (40, 128, 64, 8, 8, (3, 3), (2, 2), (1, 1)),
    (2, 16, 16, 3, 300, (1, 1), (1, 1), (0, 0)),
]
SMALL = (2, 16, 32, 5, 5, (3, 3), (2, 2), (1, 1))


def case(shape, dtype, seed=0):
    """x, the weight and the gradient of the result; and stride and padding."""
    B, C, K, H, W, kernel, stride, padding = shape
    generator = torch.Generator().manual_seed(seed)
    sides = zip((H, W), kernel, stride, padding, strict=True)
    size = [(side + 2 * pad - k) // step + 1 for side, k, step, pad in sides]

    def draw(size, dtype):
        values = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        return values.contiguous(memory_format=torch.channels_last)

    weight = draw((K, C, *kernel), torch.float64 if dtype == torch.float64 else torch.float32)
    weight /= (C * kernel[0] * kernel[1]) ** 0.5
    return (draw((B, C, H, W), dtype), weight, draw((B, K, *size), dtype)), (stride, padding)


def run(x, weight, grad_y, how, impl):
    return differentiated(lambda x, weight: conv2d(x, weight, *how, impl=impl), x, weight, grad_y)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 8, 24, 5, 6, (3, 2), (2, 1), (1, 0))], ids=str)
def test_float64_is_exact(shape):
    values, how = case(shape, torch.float64)
    got, exact = run(*values, how, "cpp"), run(*values, how, "eager")
    for name in exact:
        torch.testing.assert_close(got[name], exact[name], rtol=1e-11, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_low_precision_against_float64(simd, dtype, shape):
    """float32 loses what torch does, and so does the gradient of x in bfloat16. The gradient of the weight is float32
    sums of exact products then, which torch rounds to bfloat16."""
    values, how = case(shape, dtype)
    skip_unless_taken(*values[:2])
    exact = run(*(value.double() for value in values), how, "eager")
    lost = error(run(*values, how, "eager"), exact)
    found = error(run(*values, how, "cpp"), exact)
    for name, loss in found.items():
        assert loss <= 3 * lost[name] + 1e-6, name
    assert found["grad_weight"] < 3e-6


@pytest.mark.parametrize("dtype", list(NAMES), ids=str)
def test_kept_memory_is_written_before_it_is_read(dtype):
    """In a new thread, whose memory is fresh and so poisoned; and that it grows with what is asked."""
    small, large = case(SMALL, dtype), case((5, 32, 48, 9, 9, (3, 3), (2, 2), (1, 1)), dtype)
    skip_unless_taken(*small[0][:2])
    with ThreadPoolExecutor(1) as one:
        results = (one.submit(run, *values, how, "cpp").result() for values, how in (small, large, small))
        first, _, again = results
    assert all(value.isfinite().all() for value in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=50)
@given(
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)), batch=st.integers(1, 5),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    kernel=pairs, stride=pairs, padding=pairs, dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape(channels, batch, extra, kernel, stride, padding, dtype, seed):
    padding = tuple(min(pad - 1, k - 1) for pad, k in zip(padding, kernel, strict=True))
    H, W = (max(1, k - 2 * pad) + more for k, pad, more in zip(kernel, padding, extra, strict=True))
    values, how = case((batch, 16 * channels[0], 16 * channels[1], H, W, kernel, stride, padding), dtype, seed)
    skip_unless_taken(*values[:2])
    exact = run(*(value.double() for value in values), how, "eager")
    found = error(run(*values, how, "cpp"), exact)
    assert found["grad_weight"] <= (1e-14 if dtype == torch.float64 else 3e-6)
    for name in ("y", "grad_x"):  # y is torch's own, and grad_x where there are no strides
        assert found[name] <= {torch.float64: 1e-14, torch.float32: 3e-6, torch.bfloat16: 1e-2}[dtype], name


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_strides(make):
    generator = torch.Generator().manual_seed(0)
    x, grad_y = (make(torch.randn(4, 8, side, side, generator=generator, dtype=torch.float64)) for side in (8, 4))
    weight = torch.randn(8, 8, 3, 3, generator=generator, dtype=torch.float64).transpose(2, 3)
    results = []
    for impl in ("cpp", "eager"):
        leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
        y = conv2d(*leaves, (2, 2), (1, 1), impl=impl)
        grad = grad_y if y.shape == grad_y.shape else torch.ones_like(y)
        results.append([y, *torch.autograd.grad(y, leaves, grad)])
    for got, exact in zip(*results, strict=True):
        torch.testing.assert_close(got, exact)


def test_gradcheck():
    (x, weight, _), how = case((2, 8, 8, 5, 4, (3, 2), (2, 1), (1, 1)), torch.float64)
    leaves = x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda *leaves: conv2d(*leaves, *how, impl="cpp"), leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", list(NAMES), ids=str)
@pytest.mark.parametrize("shape", [SMALL, (2, 16, 16, 1, 1, (1, 1), (1, 1), (0, 0))], ids=str)
def test_opcheck(dtype, shape):
    (x, weight, grad_y), how = case(shape, dtype)
    skip_unless_taken(x, weight)
    torch.library.opcheck(torch.ops.fastdhm.conv2d, (x.clone().requires_grad_(), weight.clone().requires_grad_(), *how))
    torch.library.opcheck(torch.ops.fastdhm.conv2d_input_grad, (grad_y, x, weight.to(dtype), *how))
    torch.library.opcheck(torch.ops.fastdhm.conv_weight_grad, (grad_y, x, weight.shape[2:], *how))


@pytest.mark.parametrize("dtype", list(NAMES), ids=str)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[7], SHAPES[8], SHAPES[9]], ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype, shape):
    values, how = case(shape, dtype)
    skip_unless_taken(*values[:2])
    results = []
    for number in (1, 2, 5):
        with harness.threads(number):
            results.append(run(*values, how, "cpp"))
    ours = ["grad_weight"] if how[0] == (1, 1) else ["grad_x", "grad_weight"]
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in ours)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("of", [0, 2], ids=["x", "grad_y"])
def test_values_that_are_not_finite_reach_the_same_outputs_as_in_torch(simd, value, of):
    values, how = case((3, 16, 16, 8, 8, (3, 3), (2, 2), (1, 1)), torch.float32)
    skip_unless_taken(*values[:2])
    values[of][2, 4, 3, 2] = value
    got, exact = (run(*values, how, impl) for impl in ("cpp", "eager"))
    for name in exact:
        assert torch.equal(got[name].isfinite(), exact[name].isfinite()), name


def test_only_the_requested_gradients_are_computed():
    (x, weight, grad_y), how = case(SMALL, torch.float32)
    weight.requires_grad_()
    conv2d(x, weight, *how, impl="cpp").backward(grad_y)
    assert weight.grad is not None
    assert x.grad is None
    weight.requires_grad_(False)
    (grad_x,) = torch.autograd.grad(conv2d(x.requires_grad_(), weight, *how, impl="cpp"), x, grad_y)
    assert grad_x.shape == x.shape
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not conv2d(x.detach().bfloat16(), weight, *how).requires_grad


def test_an_input_changed_in_place_is_noticed():
    (x, weight, grad_y), how = case(SMALL, torch.float32)
    weight.requires_grad_()
    y = conv2d(x, weight, *how, impl="cpp")
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(grad_y)


@pytest.mark.parametrize("dtype", list(NAMES), ids=str)
@pytest.mark.parametrize("of", [0, 1])
def test_a_gradient_of_the_gradient_is_refused(dtype, of):
    (x, weight, _), how = case(SMALL, dtype)
    skip_unless_taken(x, weight)
    leaves = x.requires_grad_(), weight.requires_grad_()
    y = conv2d(*leaves, *how, impl="cpp")
    (grad,) = torch.autograd.grad(y.float().square().sum(), leaves[of], create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("impl", ["eager", "cpp", "auto"])
def test_autocast(impl):
    (x, weight, grad_y), how = case(SMALL, torch.float32)
    skip_unless_taken(x.bfloat16(), weight)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv2d(x, weight, *how, impl=impl)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, conv2d(x.bfloat16(), weight, *how, impl="eager"))
    with torch.autocast("cpu", torch.bfloat16):  # where the op is called by itself, as in a compiled function
        assert torch.ops.fastdhm.conv2d(x, weight, *how).dtype == torch.float32
    y.backward(grad_y.bfloat16())
    assert weight.grad.dtype == torch.float32


def test_in_a_compiled_function():
    (x, weight, _), how = case(SMALL, torch.float32)
    weight.requires_grad_()

    def rule(x, weight):
        return conv2d(x, weight, *how).sum()

    compiled = torch.compile(rule, fullgraph=True, backend="aot_eager")
    assert torch.equal(*(torch.autograd.grad(each(x, weight), weight)[0] for each in (compiled, rule)))


@pytest.mark.parametrize(("shape", "dtype", "ours"), [
    ((2, 16, 32, 9, 8, (3, 3), (2, 2), (1, 1)), torch.bfloat16, True),
    ((2, 32, 16, 9, 8, (3, 2), (1, 2), (2, 0)), torch.float32, True),
    ((2, 8, 24, 9, 8, (5, 4), (3, 4), (0, 3)), torch.float64, True),
    ((2, 16, 32, 9, 8, (3, 3), (1, 1), (1, 1)), torch.bfloat16, False),
    ((2, 16, 32, 9, 8, (1, 1), (2, 2), (0, 0)), torch.bfloat16, False),
    ((2, 16, 32, 9, 8, (3, 1), (2, 2), (0, 0)), torch.float64, False),
    ((2, 256, 512, 5, 4, (3, 3), (2, 2), (1, 1)), torch.bfloat16, False),
    ((2, 24, 32, 9, 8, (3, 3), (2, 2), (1, 1)), torch.bfloat16, False),
], ids=str)  # fmt: skip
def test_the_gradient_of_x_uses_products_where_they_are_faster(shape, dtype, ours):
    (x, weight, grad_y), how = case(shape, dtype)
    if ours:
        skip_unless_taken(x, weight)
    op, weight = torch.ops.fastdhm.conv2d_input_grad, weight.to(dtype)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        grad_x = op(grad_y, x, weight, *how)
    by_torch = any(event.key == "aten::convolution_backward" for event in profile.key_averages())
    assert by_torch == (not ours)
    assert grad_x.is_contiguous(memory_format=torch.channels_last)
    contiguous = op(grad_y.contiguous(), x.contiguous(), weight.contiguous(), *how)  # in another order, by torch
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(grad_x, contiguous, **tolerance)


BAD = {"x": torch.zeros(2, 16, 4, 4), "weight": torch.zeros(16, 16, 3, 3), "stride": (2, 2), "padding": (1, 1)}


@pytest.mark.parametrize(("change", "message"), [
    ({"x": torch.zeros(2, 16, 4, 4, dtype=torch.float16)}, "x is torch.float16.*must be bfloat16, float32 or float64"),
    ({"x": torch.zeros(2, 16)}, r"x is \(2, 16\) and weight .*must be \[B, C, H, W\] and \[K, C, R, S\]"),
    ({"x": torch.zeros(2, 16, 4, 4, dtype=torch.uint8)}, "x is torch.uint8 .*must be floating"),
    ({"x": torch.zeros(0, 16, 4, 4)}, r"x is \(0, 16, 4, 4\).*must not be empty"),
    ({"x": torch.zeros(2, 16, 4, 0)}, r"\(4, 0\) with padding \(1, 1\): .*no smaller than the kernel, \(3, 3\)"),
    ({"weight": torch.zeros(16, 16, 3, 3, dtype=torch.float64)}, "weight torch.float64: must both be float64"),
    ({"weight": torch.zeros(16, 8, 3, 3)}, r"must be \[B, C, H, W\] and \[K, C, R, S\]"),
    ({"weight": torch.zeros(10, 16, 3, 3)}, "channels are 16 and 10: must be multiples of"),
    ({"weight": torch.zeros(16, 16, 3, 3, device="meta")}, "x is on cpu and weight on meta"),
    ({"weight": torch.zeros(16, 16, 1, 1)}, r"padding is \(1, 1\): must be smaller than the kernel, \(1, 1\)"),
    ({"weight": torch.zeros(16, 16, 7, 3)}, r"must be no smaller than the kernel, \(7, 3\)"),
    ({"stride": (0, 1)}, r"stride is \(0, 1\) and padding \(1, 1\): must be pairs of whole numbers, from 1 and from 0"),
    ({"stride": (2,)}, r"stride is \(2,\) .*must be pairs"),
    ({"stride": 2}, "stride is 2 .*must be pairs"),
    ({"padding": (1, -1)}, r"padding \(1, -1\): must be pairs of whole numbers, from 1 and from 0"),
])  # fmt: skip
def test_inputs_that_cpp_cannot_take_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        conv2d(*(BAD | change).values(), impl="cpp")


def test_auto_does_the_rest_by_torch():
    values, how = case((2, 16, 10, 4, 4, (3, 3), (2, 2), (1, 1)), torch.float32)
    auto, eager = (run(*values, how, impl) for impl in ("auto", "eager"))
    assert all(torch.equal(auto[name], eager[name]) for name in eager)
    with pytest.raises(ValueError, match="unknown impl 'triton'.*known: auto, eager, cpp"):
        conv2d(*values[:2], impl="triton")


@pytest.mark.parametrize("matrix_units", [False, True])
@pytest.mark.parametrize("wide_vectors", [False, True])
def test_auto_uses_cpp_where_it_was_measured_to_be_faster(monkeypatch, matrix_units, wide_vectors):
    monkeypatch.setattr(_convolution, "has_matrix_units", lambda: matrix_units)
    monkeypatch.setattr(_convolution, "has_wide_vectors", lambda: wide_vectors)
    kernels = {side: torch.zeros(16, 16, side, side) for side in (1, 3)}
    cases = set(itertools.product(NAMES, kernels, (1, 2)))
    paying = {
        (dtype, side, step) for dtype, side, step in cases
        if pays(torch.zeros(2, 16, 8, 8, dtype=dtype), kernels[side], (step, step))
    }  # fmt: skip
    narrow = {case for case in cases if case[0] == torch.bfloat16 and not matrix_units}
    assert paying == narrow | ({(torch.float32, 3, 2)} if wide_vectors else set())
    assert not pays(torch.zeros(1, 16, 8, 8, dtype=torch.bfloat16), kernels[3], (2, 2))


GRAD = {"grad_y": torch.zeros(2, 16, 2, 2), "x": torch.zeros(2, 16, 4, 4), "kernel": (3, 3), "stride": (2, 2),
        "padding": (1, 1)}  # fmt: skip


@pytest.mark.parametrize("change", [
    {"grad_y": torch.zeros(2, 16, 2, 3)}, {"grad_y": torch.zeros(3, 16, 2, 2)}, {"grad_y": torch.zeros(2, 12, 2, 2)},
    {"grad_y": torch.zeros(2, 16, 2, 2, dtype=torch.float64)}, {"x": torch.zeros(2, 12, 4, 4)},
    {"x": torch.zeros(2, 16, 4, 4)[..., ::2]}, {"x": torch.zeros(0, 16, 4, 4)},
    {"x": torch.zeros(2, 4, 16, 4).transpose(1, 2)},
    {"kernel": (7, 7)}, {"kernel": (0, 3)}, {"kernel": (1, 1)}, {"stride": (0, 2)}, {"stride": (2, -2)},
    {"padding": (-1, 1)}, {"padding": (3, 3)},
], ids=str)  # fmt: skip
def test_the_raw_op_reads_nothing_out_of_bounds(change):
    with pytest.raises(ValueError, match="must be"):
        torch.ops.fastdhm.conv_weight_grad(*in_order(GRAD | change))


INPUT_GRAD = GRAD | {"weight": torch.zeros(16, 16, 3, 3)}


@pytest.mark.parametrize("change", [
    {"grad_y": torch.zeros(2, 16, 2, 3)}, {"grad_y": torch.zeros(3, 16, 2, 2)}, {"grad_y": torch.zeros(2, 12, 2, 2)},
    {"grad_y": torch.zeros(2, 16, 4)}, {"grad_y": torch.zeros(2, 16, 2, 2, dtype=torch.float64)},
    {"x": torch.zeros(2, 32, 4, 4)}, {"x": torch.zeros(2, 16, 5, 4)}, {"x": torch.zeros(2, 16, 0, 4)},
    {"x": torch.zeros(16)}, {"weight": torch.zeros(16, 16, 3, 3, dtype=torch.bfloat16)},
    {"weight": torch.zeros(16, 16, 7, 3)}, {"weight": torch.zeros(16, 16, 0, 3)}, {"weight": torch.zeros(16, 3, 3)},
    {"stride": (0, 2)}, {"stride": (2, -2)}, {"stride": (2, 2, 2)}, {"padding": (-1, 1)}, {"padding": (1, 3)},
], ids=str)  # fmt: skip
def test_the_raw_gradient_of_x_reads_nothing_out_of_bounds(change):
    values = INPUT_GRAD | change
    with pytest.raises(ValueError, match="must be"):
        torch.ops.fastdhm.conv2d_input_grad(
            *in_order({name: values[name] for name in ("grad_y", "x", "weight", "stride", "padding")})
        )


def in_order(values):
    """The values, of which tensors that have no strides of their own are channels-last."""
    last = {"memory_format": torch.channels_last}
    return [
        value.contiguous(**last) if torch.is_tensor(value) and value.ndim == 4 and value.is_contiguous() else value
        for value in values.values()
    ]


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"), [(1, 3, 2, 1), (1, 7, 2, 3), (2, 7, 4, 3), (4, 3, 2, 1), (1, 1, 2, 0)]
)
def test_weights_that_meet_no_pixel_have_no_gradient(side, kernel, stride, padding):
    """In bfloat16 on a CPU, torch leaves there what lay in the memory."""
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randn(8, 64, side, side, generator=generator).bfloat16()
    weight_KCRS = torch.randn(64, 64, kernel, kernel, generator=generator)
    steps, pads = (stride, stride), (padding, padding)
    grads = []
    for dtype in (torch.bfloat16, torch.float32):
        junk = [torch.full((64, 64, kernel, kernel), torch.nan, dtype=torch.bfloat16) for _ in range(8)]
        del junk
        weight = weight_KCRS.clone().requires_grad_()
        conv2d(x_BCHW.to(dtype), weight, steps, pads, impl="eager").float().sum().backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads, rtol=2**-6, atol=2**-4)
