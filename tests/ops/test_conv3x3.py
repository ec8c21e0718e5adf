"""3x3 convolutions by Winograd's tiles, in every form that runs here, against torch's own.

Legend: B batch, C channels in, K channels out, H height, W width.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from convolutions import differentiated, error, skip_unless_taken
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdhm.benchmarks.harness import timing as harness
from fastdhm.ops import _convolution, _extension
from fastdhm.ops._convolution import NAMES
from fastdhm.ops.conv3x3 import conv3x3, pays
from views import VIEWS

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))
# B, C, K, H, W: one pixel, odd sides, an odd number of tiles a row, one to four vectors of channels and runs of them,
# more channels than stay near at once, more tiles than one block
SHAPES = [
    (1, 16, 16, 1, 1), (3, 16, 32, 7, 9), (2, 32, 16, 5, 14), (1, 48, 80, 2, 3), (2, 64, 112, 6, 6), (2, 144, 16, 4, 7),
    (9, 16, 16, 18, 22),
]  # fmt: skip
MOST_OF_TORCHS = {torch.float32: 6, torch.bfloat16: 9}  # errors


def case(shape, dtype, seed=0):
    """x, the weight and the gradient of the result."""
    B, C, K, H, W = shape
    generator = torch.Generator().manual_seed(seed)
    own = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(size, dtype):
        values = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        return values.contiguous(memory_format=torch.channels_last)

    return draw((B, C, H, W), dtype), draw((K, C, 3, 3), own) / (3 * C**0.5), draw((B, K, H, W), dtype)


def run(x, weight, grad_y, impl):
    return differentiated(lambda x, weight: conv3x3(x, weight, impl=impl), x, weight, grad_y)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 8, 24, 5, 5)], ids=str)
def test_float64_is_exact(shape):
    x, weight, grad_y = case(shape, torch.float64)
    got, exact = run(x, weight, grad_y, "cpp"), run(x, weight, grad_y, "eager")
    for name in exact:
        torch.testing.assert_close(got[name], exact[name], rtol=1e-11, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_low_precision_against_float64(simd, dtype, shape):
    """float32 loses two to four times what torch's own convolution does, whose sums differ with its library. bfloat16
    rounds inputs, weights and gradients once more, as sums with factors, of which the transform back makes about 1%."""
    x, weight, grad_y = case(shape, dtype)
    skip_unless_taken(x, weight)
    exact = run(x.double(), weight.double(), grad_y.double(), "eager")
    lost = error(run(x, weight, grad_y, "eager"), exact)
    for name, loss in error(run(x, weight, grad_y, "cpp"), exact).items():
        assert loss <= MOST_OF_TORCHS[dtype] * lost[name] + 1e-6, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activations_of_one_sign_and_long_sums(dtype):
    """Of the kind that a relu makes, 16,384 tiles of them: the sums of the weights' gradient are the longest."""
    x, weight, grad_y = case((64, 16, 16, 32, 32), dtype)
    skip_unless_taken(x, weight)
    x = x.relu()
    exact = run(x.double(), weight.double(), grad_y.double(), "eager")
    lost = error(run(x, weight, grad_y, "eager"), exact)
    for name, loss in error(run(x, weight, grad_y, "cpp"), exact).items():
        assert loss <= MOST_OF_TORCHS[dtype] * lost[name] + 1e-6, name


@pytest.mark.parametrize("dtype", list(NAMES), ids=str)
def test_kept_memory_is_written_before_it_is_read(dtype):
    """In a new thread, whose memory is fresh and so poisoned; and that it grows with what is asked."""
    small, large = case((1, 16, 16, 3, 5), dtype), case((5, 32, 48, 9, 9), dtype)
    skip_unless_taken(*small[:2])
    with ThreadPoolExecutor(1) as one:
        first, _, again = (one.submit(run, *values, "cpp").result() for values in (small, large, small))
    assert all(value.isfinite().all() for value in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 11), st.integers(1, 11)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape(shape, dtype, seed):
    B, C, K, H, W = shape
    x, weight, grad_y = case((B, 16 * C, 16 * K, H, W), dtype, seed)
    skip_unless_taken(x, weight)
    exact = run(x.double(), weight.double(), grad_y.double(), "eager")
    for name, loss in error(run(x, weight, grad_y, "cpp"), exact).items():
        assert loss <= {torch.float64: 1e-14, torch.float32: 3e-6, torch.bfloat16: 3e-2}[dtype], name


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_strides(make):
    generator = torch.Generator().manual_seed(0)
    x, grad_y = (make(torch.randn(4, 8, 6, 6, generator=generator, dtype=torch.float64)) for _ in range(2))
    weight = torch.randn(8, 8, 3, 3, generator=generator, dtype=torch.float64).transpose(2, 3)
    results = []
    for impl in ("cpp", "eager"):
        leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
        y = conv3x3(*leaves, impl=impl)
        results.append([y, *torch.autograd.grad(y, leaves, grad_y)])
    for got, exact in zip(*results, strict=True):
        torch.testing.assert_close(got, exact)


def test_gradcheck():
    x, weight, _ = case((1, 8, 8, 3, 4), torch.float64)
    leaves = x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda *leaves: conv3x3(*leaves, impl="cpp"), leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", list(NAMES), ids=str)
@pytest.mark.parametrize("side", [1, 5])
def test_opcheck(dtype, side):
    x, weight, grad_y = case((2, 16, 32, side, side), dtype)
    skip_unless_taken(x, weight)
    torch.library.opcheck(torch.ops.fastdhm.conv3x3, (x.clone().requires_grad_(), weight.clone().requires_grad_()))
    torch.library.opcheck(torch.ops.fastdhm.conv3x3_input_grad, (grad_y, weight))
    torch.library.opcheck(torch.ops.fastdhm.conv3x3_weight_grad, (grad_y, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(9, 16, 16, 18, 22), (100, 128, 64, 8, 8)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype, shape):
    x, weight, grad_y = case(shape, dtype)
    skip_unless_taken(x, weight)
    results = []
    for number in (1, 2, 5):
        with harness.threads(number):
            results.append(run(x, weight, grad_y, "cpp"))
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_reach_the_result(simd, value):
    """At least where it does in torch: a tile shares it with all of its outputs."""
    x, weight, grad_y = case((2, 16, 16, 8, 8), torch.float32)
    skip_unless_taken(x, weight)
    x[1, 4, 3, 2] = value
    got, exact = (run(x, weight, grad_y, impl) for impl in ("cpp", "eager"))
    for name in ("y", "grad_weight"):
        assert not (~exact[name].isfinite() & got[name].isfinite()).any(), name
    assert got["y"][0].isfinite().all()
    assert got["grad_x"].isfinite().all()


def test_only_the_requested_gradients_are_computed():
    x, weight, grad_y = case((2, 16, 16, 4, 4), torch.float32)
    weight.requires_grad_()
    conv3x3(x, weight, impl="cpp").backward(grad_y)
    assert weight.grad is not None
    assert x.grad is None
    with torch.no_grad():
        assert not conv3x3(x, weight, impl="cpp").requires_grad


def test_an_input_changed_in_place_is_noticed():
    x, weight, grad_y = case((2, 16, 16, 4, 4), torch.float32)
    weight.requires_grad_()
    y = conv3x3(x, weight, impl="cpp")
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(grad_y)


def test_a_gradient_of_the_gradient_is_refused():
    x, weight, _ = case((2, 16, 16, 4, 4), torch.float32)
    (grad,) = torch.autograd.grad(conv3x3(x.requires_grad_(), weight, impl="cpp").square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("impl", ["eager", "cpp", "auto"])
def test_autocast(impl):
    x, weight, _ = case((2, 16, 16, 4, 4), torch.float32)
    skip_unless_taken(x.bfloat16(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv3x3(x, weight, impl=impl)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, conv3x3(x.bfloat16(), weight, impl="eager"), rtol=0.05, atol=0.05)


def test_in_a_compiled_function():
    x, weight, _ = case((2, 16, 16, 4, 4), torch.float32)
    weight.requires_grad_()
    compiled = torch.compile(lambda x, weight: conv3x3(x, weight).sum(), fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(each(x, weight), weight)[0] for each in (compiled, lambda *args: conv3x3(*args).sum())]
    assert torch.equal(*grads)


@pytest.mark.parametrize(("change", "message"), [
    ({"x": torch.zeros(2, 16, 4, 4, dtype=torch.float16)}, "x is torch.float16.*must be bfloat16, float32 or float64"),
    ({"x": torch.zeros(2, 16)}, r"x is \(2, 16\) and weight .*must be \[B, C, H, W\] and \[K, C, 3, 3\]"),
    ({"x": torch.zeros(2, 16, 4, 4, dtype=torch.uint8)}, "x is torch.uint8 .*must be floating"),
    ({"x": torch.zeros(0, 16, 4, 4)}, r"x is \(0, 16, 4, 4\).*must not be empty"),
    ({"weight": torch.zeros(16, 16, 3, 3, dtype=torch.float64)}, "weight torch.float64: must both be float64"),
    ({"weight": torch.zeros(16, 8, 3, 3)}, r"must be \[B, C, H, W\] and \[K, C, 3, 3\]"),
    ({"weight": torch.zeros(16, 16, 1, 1)}, r"must be \[B, C, H, W\] and \[K, C, 3, 3\]"),
    ({"weight": torch.zeros(10, 16, 3, 3)}, "channels are 16 and 10: must be multiples of"),
    ({"weight": torch.zeros(16, 16, 3, 3, device="meta")}, "x is on cpu and weight on meta"),
])  # fmt: skip
def test_inputs_that_cpp_cannot_take_are_refused(change, message):
    values = {"x": torch.zeros(2, 16, 4, 4), "weight": torch.zeros(16, 16, 3, 3)} | change
    with pytest.raises(ValueError, match=message):
        conv3x3(*values.values(), impl="cpp")


def test_auto_does_the_rest_by_torch():
    x, weight, grad_y = case((2, 16, 10, 4, 4), torch.float32)
    auto, eager = (run(x, weight, grad_y, impl) for impl in ("auto", "eager"))
    assert all(torch.equal(auto[name], eager[name]) for name in eager)
    with pytest.raises(ValueError, match="unknown impl 'triton'.*known: auto, eager, cpp"):
        conv3x3(x, weight, impl="triton")


@pytest.mark.parametrize(("images", "channels", "expected"), [
    ((2, 3, 8), 16, False), ((2, 4, 8), 16, True), ((1, 8, 8), 64, True), ((1, 8, 8), 128, False),
    ((2, 8, 8), 128, True), ((8, 7, 7), 512, False), ((12, 7, 7), 512, True),
])  # fmt: skip
def test_auto_uses_cpp_where_it_was_measured_to_be_faster(images, channels, expected):
    """``meta`` tensors have no numbers, only shapes."""
    batch, height, width = images
    with torch.device("meta"):
        weight = torch.zeros(channels, channels, 3, 3)
        assert pays(torch.zeros(batch, channels, height, width), weight) == expected
        assert not pays(torch.zeros(batch, channels, height, width, dtype=torch.float64), weight)


def test_bfloat16_is_left_to_matrix_units(monkeypatch):
    narrow, wide = (torch.zeros(2, 16, 8, 8, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    weight = torch.zeros(16, 16, 3, 3)
    monkeypatch.setattr(_convolution, "has_matrix_units", lambda: True)
    assert (pays(narrow, weight), pays(wide, weight)) == (False, True)
    monkeypatch.setattr(_convolution, "has_matrix_units", lambda: False)
    assert pays(narrow, weight)


@pytest.mark.parametrize(("name", "tensors"), [
    ("conv3x3", (torch.zeros(0, 16, 4, 4), torch.zeros(16, 16, 3, 3))),
    ("conv3x3", (torch.zeros(2, 16, 4, 4), torch.zeros(16, 32, 3, 3))),
    ("conv3x3", (torch.zeros(2, 16, 4, 4), torch.zeros(16, 16, 3, 3, dtype=torch.float64))),
    ("conv3x3", (torch.zeros(2, 4, 4, 4), torch.zeros(16, 4, 3, 3))),
    ("conv3x3_input_grad", (torch.zeros(2, 16, 4, 4), torch.zeros(32, 16, 3, 3))),
    ("conv3x3_weight_grad", (torch.zeros(2, 16, 4, 4), torch.zeros(2, 16, 4, 5))),
    ("conv3x3_weight_grad", (torch.zeros(2, 16, 4, 4), torch.zeros(2, 16, 4, 4, dtype=torch.float64))),
    ("conv3x3_weight_grad", (torch.zeros(2, 4, 4, 4), torch.zeros(2, 16, 4, 4))),
])  # fmt: skip
def test_the_raw_ops_read_nothing_out_of_bounds(name, tensors):
    with pytest.raises(ValueError, match="must be"):
        getattr(torch.ops.fastdhm, name)(*(tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors))


def test_the_raw_op_wants_channels_last():
    weight = torch.zeros(16, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="channels-last order.*with strides"):
        torch.ops.fastdhm.conv3x3(torch.zeros(2, 16, 4, 4)[:, :, ::2], weight)


def test_every_type_has_a_name_for_the_extension():
    extension = _extension.require("this test")
    assert all(extension.conv3x3_width(name) in (0, 8, 16) for name in NAMES.values())
    with pytest.raises(ValueError, match="dtype is float16, must be"):
        extension.conv3x3_width("float16")
