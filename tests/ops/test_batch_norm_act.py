"""Batch norm, residual and activation as one op, in every form that runs here, against torch's own operations.

Legend: B batch, C channels, H height, W width.
"""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdhm.benchmarks.harness import timing as harness
from fastdhm.ops import _extension
from fastdhm.ops.batch_norm_act import batch_norm_act
from views import VIEWS

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))
# channels below, at and between the widths of vectors and the runs of one, two and four of them; one row, many groups
SHAPES = [(2, 1, 1, 1), (3, 7, 5, 3), (2, 16, 9, 9), (2, 33, 4, 7), (5, 64, 3, 3), (1, 100, 2, 2), (2, 1031, 3, 1)]
SUMS = 2e-6  # relative; up to 128 numbers are added in float32 before double takes over
LARGE = (16, 24, 40, 31)  # rows enough for several groups of sums


def case(shape, dtype, *, residual=True, seed=0, mean=0.5):
    """Inputs by name, those that get a gradient as leaves, and the gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    values = {
        "x": (2 * draw(*shape) + mean).to(dtype), "running_mean": draw(shape[1]).to(own),
        "running_var": draw(shape[1]).to(own).abs(), "weight": (draw(shape[1]) + 1).to(own),
        "bias": draw(shape[1]).to(own), "residual": draw(*shape).to(dtype) if residual else None,
    }  # fmt: skip
    values = {
        name: None
        if value is None
        else value.contiguous(memory_format=torch.channels_last)
        if value.ndim == 4
        else value
        for name, value in values.items()
    }
    return values, draw(*shape).to(dtype)


def run(values, grad_y, **options):
    """The result, the running statistics and all gradients, by name, as float64."""
    values = {name: None if value is None else value.clone() for name, value in values.items()}
    leaves = {n: v.requires_grad_() for n, v in values.items() if v is not None and not n.startswith("running")}
    y = batch_norm_act(*values.values(), **options)
    y.backward(grad_y)
    results = {"y": y.detach(), "running_mean": values["running_mean"], "running_var": values["running_var"]}
    results |= {f"grad_{name}": leaf.grad for name, leaf in leaves.items()}
    return {name: result.double() for name, result in results.items()}


def error(got, exact, least=1e-30):
    """Relative to the result, or to ``least`` if that is more: summands of about 1 may add up to nearly nothing."""
    return {name: float((got[name] - exact[name]).norm() / exact[name].norm().clamp(min=least)) for name in exact}


@pytest.mark.parametrize("shape", [*SHAPES, LARGE], ids=str)
@pytest.mark.parametrize(("residual", "relu"), list(itertools.product([True, False], repeat=2)))
def test_float64_is_exact(shape, residual, relu):
    values, grad_y = case(shape, torch.float64, residual=residual)
    got = run(values, grad_y, relu=relu, impl="cpp")
    exact = run(values, grad_y, relu=relu, impl="eager")
    for name in exact:
        torch.testing.assert_close(
            got[name], exact[name], rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES[1:], LARGE], ids=str)
@pytest.mark.parametrize(("residual", "relu"), list(itertools.product([True, False], repeat=2)))
def test_low_precision_loses_no_more_than_eager(simd, dtype, shape, residual, relu):
    """Against float64 on the same numbers: at most twice what torch's operations lose, each of which rounds."""
    values, grad_y = case(shape, dtype, residual=residual)
    wide = {n: None if v is None else v.double() for n, v in values.items()}
    exact = run(wide, grad_y.double(), relu=relu, impl="eager")
    lost = error(run(values, grad_y, relu=relu, impl="eager"), exact)
    for name, loss in error(run(values, grad_y, relu=relu, impl="cpp"), exact).items():
        assert loss <= 2 * lost[name] + SUMS, name


def test_a_mean_far_from_zero_costs_no_accuracy(simd):
    values, grad_y = case(LARGE, torch.float32, mean=3000.0)
    exact = run({n: v.double() for n, v in values.items()}, grad_y.double(), impl="eager")
    lost = error(run(values, grad_y, impl="eager"), exact)
    for name, loss in error(run(values, grad_y, impl="cpp"), exact).items():
        assert loss <= 2 * lost[name] + SUMS, name


def test_an_outlier_in_the_first_pixel_costs_no_accuracy(simd):
    values, grad_y = case(LARGE, torch.float32)
    values["x"][0, :, 0, 0] = 1e3
    exact = run({n: v.double() for n, v in values.items()}, grad_y.double(), impl="eager")
    lost = error(run(values, grad_y, impl="eager"), exact)
    for name, loss in error(run(values, grad_y, impl="cpp"), exact).items():
        assert loss <= 2 * lost[name] + SUMS, name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 70), st.integers(2, 6), st.integers(2, 6)),
    residual=st.booleans(), relu=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape(simd, shape, residual, relu, seed):
    values, grad_y = case(shape, torch.float32, residual=residual, seed=seed)
    exact = run(
        {n: None if v is None else v.double() for n, v in values.items()}, grad_y.double(), relu=relu, impl="eager"
    )
    for name, loss in error(run(values, grad_y, relu=relu, impl="cpp"), exact, least=1.0).items():
        assert loss <= 2e-5, name


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_strides(make):
    generator = torch.Generator().manual_seed(0)
    x, residual, grad_y = (make(torch.randn(4, 5, 6, 6, generator=generator, dtype=torch.float64)) for _ in range(3))
    vectors = [torch.rand(5, generator=generator, dtype=torch.float64) for _ in range(4)]
    results = []
    for impl in ("cpp", "eager"):
        leaves = [x.detach().requires_grad_(), residual.detach().requires_grad_()]
        y = batch_norm_act(leaves[0], *[v.clone() for v in vectors], leaves[1], impl=impl)
        results.append([y, *torch.autograd.grad(y, leaves, grad_y)])
    for got, exact in zip(*results, strict=True):
        torch.testing.assert_close(got, exact)


def test_gradcheck():
    values, _ = case((3, 5, 2, 3), torch.float64, seed=3)
    leaves = [values[name].requires_grad_() for name in ("x", "weight", "bias", "residual")]

    def op(x, weight, bias, residual):
        running = values["running_mean"].clone(), values["running_var"].clone()
        return batch_norm_act(x, *running, weight, bias, residual, impl="cpp")

    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_opcheck(residual, relu):
    values, _ = case((3, 18, 2, 3), torch.float32, residual=residual)
    x, weight, bias = (values[name] for name in ("x", "weight", "bias"))
    leaves = {n: v if v is None or n.startswith("running") else v.clone().requires_grad_() for n, v in values.items()}
    torch.library.opcheck(torch.ops.fastdhm.batch_norm_act, (*leaves.values(), 0.1, 1e-5, relu))
    y, mean, var = torch.ops.fastdhm.batch_norm_act(*values.values(), 0.1, 1e-5, relu)
    masked = residual and relu
    given = (torch.randn_like(y), x, y if masked else None, weight, bias, mean, var, 1e-5, relu, masked)
    torch.library.opcheck(torch.ops.fastdhm.batch_norm_act_backward, given)


EDGES = {
    "random": lambda values: None,
    # x of -1, 0 and 1 alike often and no shift: a third of the sums is exactly 0
    "zeros": lambda values: (values["x"].copy_(thirds(values["x"])), values["bias"].zero_()),
    # around the smallest number of bfloat16, of float32 and of both: what is above 0 may round to 0
    "tiny": lambda values: (
        values["weight"].copy_(2.0 ** -(125 + torch.arange(len(values["weight"])) % 26)),
        values["bias"].zero_(),
    ),
    "not finite": lambda values: values["x"].permute(0, 2, 3, 1).view(-1)[::97].copy_(torch.tensor(float("nan"))),
    "infinite": lambda values: values["x"].permute(0, 2, 3, 1).view(-1)[::97].copy_(torch.tensor(float("inf"))),
    "no weight": lambda values: (values["weight"].zero_(), values["bias"].zero_()),
}


def thirds(x):
    return (torch.arange(len(x)) % 3 - 1).view(-1, 1, 1, 1).expand_as(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 7, 5, 3), (6, 33, 4, 7), (3, 100, 2, 2), (6, 1031, 3, 1), LARGE], ids=str)
@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
def test_x_gives_the_same_relu_mask_as_y(simd, dtype, shape, edge):
    """Without a residual the gradient is masked by what x gives, to the bit as by y itself, also where that is 0."""
    values, grad_y = case(shape, dtype, residual=False)
    edge(values)
    x, weight, bias = (values[name] for name in ("x", "weight", "bias"))
    grad_y = grad_y.contiguous(memory_format=torch.channels_last)
    y, mean, var = torch.ops.fastdhm.batch_norm_act(*values.values(), 0.1, 1e-5, True)
    by_y, by_x = (
        torch.ops.fastdhm.batch_norm_act_backward(grad_y, x, given, weight, bias, mean, var, 1e-5, True, False)
        for given in (y, None)
    )
    torch.testing.assert_close(by_x, by_y, rtol=0, atol=0, equal_nan=True)


def test_a_sum_of_exactly_0_passes_no_gradient():
    values, grad_y = case((6, 20, 3, 3), torch.float64, residual=False)
    EDGES["zeros"](values)
    got, exact = (run(values, grad_y, impl=impl) for impl in ("cpp", "eager"))
    assert 0.3 < (got["y"] == 0).double().mean() < 0.7
    torch.testing.assert_close(got, exact)


@pytest.mark.parametrize(("residual", "relu"), list(itertools.product([True, False], repeat=2)))
def test_any_number_of_threads_gives_the_same_bits(simd, residual, relu):
    values, grad_y = case(LARGE, torch.bfloat16, residual=residual)
    results = []
    for number in (1, 2, 5):
        with harness.threads(number):
            results.append(run(values, grad_y, relu=relu, impl="cpp"))
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_reach_the_result(simd, value):
    values, grad_y = case((2, 20, 3, 3), torch.bfloat16, residual=False)
    values["x"][1, 4, 0, 2] = value
    got = run(values, grad_y, impl="cpp")
    bad_C = torch.arange(20) == 4
    assert torch.equal(got["y"].isnan().all(0).all(1).all(1), bad_C)
    assert torch.equal(~got["running_var"].isfinite(), bad_C)
    assert torch.equal(~got["grad_x"].isfinite().all(0).all(1).all(1), bad_C)


def test_only_the_requested_gradients_are_computed():
    values, grad_y = case((2, 4, 3, 3), torch.float32)
    weight = values["weight"].requires_grad_()
    y = batch_norm_act(*values.values(), impl="cpp")
    y.backward(grad_y)
    assert weight.grad is not None
    assert values["x"].grad is None
    with torch.no_grad():
        assert not batch_norm_act(*values.values(), impl="cpp").requires_grad


@pytest.mark.parametrize("residual", [True, False])
def test_in_a_compiled_function(residual):
    """As a whole, with the running statistics moved."""
    values, grad_y = case((3, 18, 2, 3), torch.float32, residual=residual)

    def twice(x, running_mean, running_var, weight, bias, residual):
        y = batch_norm_act(x, running_mean, running_var, weight, bias, residual, impl="cpp")
        return batch_norm_act(2 * y, running_mean, running_var, weight, bias, residual, impl="cpp")

    results = []
    for op in (twice, torch.compile(twice, fullgraph=True, backend="aot_eager")):
        given = {n: v if v is None else v.clone() for n, v in values.items()}
        leaves = [v.requires_grad_() for n, v in given.items() if v is not None and not n.startswith("running")]
        y = op(*given.values())
        results.append([y, given["running_mean"], given["running_var"], *torch.autograd.grad(y, leaves, grad_y)])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_gradient_of_a_gradient_is_refused():
    values, grad_y = case((2, 4, 3, 3), torch.float32)
    x = values["x"].requires_grad_()
    y = batch_norm_act(*values.values(), impl="cpp")
    (grad_x,) = torch.autograd.grad(y, x, grad_y, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for fastdhm::batch_norm_act_backward is not implemented"):
        grad_x.sum().backward()


def test_mean_and_variance_have_no_gradient():
    values, _ = case((2, 4, 3, 3), torch.float32)
    values["x"].requires_grad_()
    y, mean, var = torch.ops.fastdhm.batch_norm_act(*values.values(), 0.1, 1e-5, True)
    assert y.requires_grad and not mean.requires_grad and not var.requires_grad


def test_the_running_statistics_count_as_written():
    """Autograd notices that what it kept of them is gone."""
    values, _ = case((2, 4, 3, 3), torch.float32)
    scale = torch.ones(4, requires_grad=True)
    kept = scale * values["running_var"]
    batch_norm_act(*values.values(), impl="cpp")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


def test_a_result_changed_in_place_is_noticed_if_backward_needs_it():
    for residual in (True, False):
        values, grad_y = case((2, 4, 3, 3), torch.float32, residual=residual)
        expected = run(values, grad_y, impl="cpp")["grad_x"]
        x = values["x"].requires_grad_()
        y = batch_norm_act(*values.values(), impl="cpp")
        with torch.no_grad():
            y.add_(1)
        if residual:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.backward(grad_y)
        else:
            y.backward(grad_y)
            assert torch.equal(x.grad.double(), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.zeros(2, 4, 3, 3, dtype=torch.float16)},
            "x is torch.float16.*must be float32, bfloat16 or float64",
        ),
        ({"x": torch.zeros(2, 4)}, r"x is torch.float32 \(2, 4\)"),
        ({"x": torch.zeros(1, 4, 1, 1), "residual": None}, r"x is \(1, 4, 1, 1\).*more than one value per channel"),
        (
            {"weight": torch.ones(4, dtype=torch.float64)},
            "weight is torch.float64 .*must be contiguous and torch.float32",
        ),
        (
            {"running_var": torch.ones(4, dtype=torch.bfloat16)},
            "running_var is torch.bfloat16 .*must be .*torch.float32",
        ),
        ({"running_mean": torch.zeros(8)[::2]}, r"running_mean is .* with strides \(2,\): must be contiguous"),
        ({"weight": None}, "weight is None: must be contiguous and torch.float32"),
        ({"residual": torch.zeros(2, 4, 3, 1)}, "residual is torch.float32 .*must be like x"),
    ],
)
def test_inputs_that_cpp_cannot_take_are_refused(change, message):
    values = case((2, 4, 3, 3), torch.float32)[0] | change
    with pytest.raises(ValueError, match=message):
        batch_norm_act(*values.values(), impl="cpp")


def test_auto_does_the_rest_by_eager():
    values, grad_y = case((2, 4, 3, 3), torch.float32)
    values["residual"] = values["residual"][:, :, :, :1]  # broadcast
    auto, eager = (run(values, grad_y, impl=impl) for impl in ("auto", "eager"))
    assert all(torch.equal(auto[name], eager[name]) for name in eager)
    with pytest.raises(ValueError, match="unknown impl 'triton'.*known: auto, eager, cpp"):
        batch_norm_act(*values.values(), impl="triton")


@pytest.mark.parametrize("given", [
    {"x": torch.zeros(2, 4, 3, 3, dtype=torch.float64)}, {"x": torch.zeros(2, 4, 3, 3)[:, :, ::2]},
    {"x": torch.zeros(0, 4, 3, 3)}, {"weight": torch.zeros(3)}, {"bias": torch.zeros(8)[::2]},
    {"running_mean": torch.zeros(3)}, {"running_var": torch.zeros(4, dtype=torch.float64)},
    {"residual": torch.zeros(2, 4, 3, 2)},
])  # fmt: skip
def test_the_raw_op_reads_nothing_out_of_bounds(given):
    values = case((2, 4, 3, 3), torch.float32)[0] | given
    with pytest.raises(ValueError, match="must be|no elements"):
        torch.ops.fastdhm.batch_norm_act(*values.values(), 0.1, 1e-5, True)
