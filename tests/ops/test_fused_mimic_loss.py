"""The fused op: as exact as eager in the same dtype, whatever the shape, and a good citizen of torch.

Legend: M branches, B batch, K classes.
"""

import pytest
import torch
from torch import Tensor

from fastdhm.benchmarks.harness import timing as harness
from fastdhm.methods import weight_matrix
from fastdhm.ops import _extension
from fastdhm.ops.mimic_loss import mimic_loss, mimic_loss_eager, use_fused

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OP = torch.ops.fastdhm.mimic_loss


def case(M: int, B: int, K: int, dtype: torch.dtype = torch.float32, size: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(M * 10_000 + B * 100 + K)
    logits_MBK = size * torch.randn(M, B, K, generator=generator, dtype=torch.float64)
    return logits_MBK.to(dtype).requires_grad_(), torch.randint(K, (B,), generator=generator)


def weights(kind: str, M: int) -> Tensor:
    if kind == "random":  # every third weight 0
        return torch.rand(M, M, generator=torch.Generator().manual_seed(M)) * (torch.arange(M * M).view(M, M) % 3 > 0)
    return torch.ones(M, M).triu() if kind == "top-down" else weight_matrix(kind, M)


def outcome(function, logits_MBK: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    """Terms and gradient in float64."""
    logits_MBK = logits_MBK.detach().requires_grad_()
    loss, terms_MM = function(logits_MBK, *arguments)[:2]
    loss.backward()
    return terms_MM.double(), logits_MBK.grad.double()


def assert_as_exact_as_eager(logits_MBK, target_B, weights_MM, temperature=1.0, smoothing=0.0):
    """Errors against eager in float64: at most four times those of eager itself, and a few roundings of the whole."""
    arguments = (target_B, weights_MM, temperature, smoothing)
    exact = outcome(mimic_loss_eager, logits_MBK.double(), target_B, weights_MM.double(), *arguments[2:])
    eager = outcome(mimic_loss_eager, logits_MBK, *arguments)
    options = {"temperature": temperature, "label_smoothing": smoothing, "impl": "cpp"}
    fused = outcome(lambda *a: mimic_loss(*a, **options), logits_MBK, target_B, weights_MM)
    epsilon = 1e-12 if logits_MBK.dtype == torch.float64 else 1e-6
    terms_size = exact[0].nan_to_num(0, 0, 0).abs().max() + 1
    gradient_size = weights_MM.sum() * max(1, temperature) / max(1, len(target_B))
    for ours, theirs, truth, size in zip(fused, eager, exact, (terms_size, gradient_size), strict=True):
        finite = truth.isfinite()
        torch.testing.assert_close(ours.where(~finite, 0), truth.where(~finite, 0), equal_nan=True)
        lost = (theirs - truth)[finite].abs().nan_to_num(0, posinf=0).amax() if finite.any() else 0
        assert ((ours - truth)[finite].abs() <= 4 * lost + epsilon * size).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(
    ("M", "B", "K", "kind", "temperature", "smoothing"),
    [
        (1, 1, 1, "dhm", 1.0, 0.0),
        (1, 5, 10, "baseline", 1.0, 0.1),
        (2, 1, 2, "dhm", 1.0, 0.0),
        (2, 33, 100, "random", 2.0, 0.1),
        (3, 17, 10, "dhm", 1.0, 0.1),
        (3, 9, 1000, "dhm", 1.0, 0.0),
        (3, 5, 1023, "dsl", 1.0, 0.0),
        (3, 7, 1025, "top-down", 1.0, 0.1),
        (4, 6, 63, "dhm", 4.0, 0.0),
        (5, 3, 4097, "random", 1.0, 0.0),
        (8, 4, 257, "dhm", 1.0, 0.0),
        (8, 3, 1000, "random", 0.5, 0.1),
        (11, 2, 130, "dhm", 1.0, 0.0),
        (3, 2, 90_001, "dhm", 1.0, 0.0),
    ],
    ids=lambda value: str(value),
)
def test_as_exact_as_eager(simd, dtype, M, B, K, kind, temperature, smoothing):
    if simd == "none" and K > 5000:
        pytest.skip("slow, and no other path than for smaller K")
    logits_MBK, target_B = case(M, B, K, dtype)
    if B > 3:
        target_B[1] = -100
    assert_as_exact_as_eager(logits_MBK, target_B, weights(kind, M), temperature, smoothing)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "rows apart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_any_strides(simd, layout, dtype):
    logits_MBK, target_B = case(3, 6, 70, dtype)
    whole = logits_MBK.detach()
    strided = {
        "transposed": whole.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "sliced": torch.stack([whole, whole], -1)[..., 0],
        "expanded": whole[:1].expand(3, -1, -1),
        "rows apart": torch.cat([whole, whole], -1)[..., 35:105],
    }[layout]
    assert_as_exact_as_eager(strided, target_B.repeat_interleave(2)[::2], weights("random", 6)[::2, ::2])


EXTREMES = {
    "1e4": [[1e4, -1e4, 0.0, 5.0], [-1e4, 1e4, 3.0, 0.0]],
    "ties": [[2.0, 2.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0]],
    "far apart": [[3e38, -3e38, 0.0, 1.0], [1.0, 0.0, 1e30, -1e30]],
    "excluded by all": [[0.0, 1.0, -torch.inf, 2.0], [1.0, 0.0, -torch.inf, 3.0]],
    "excluded by one": [[0.0, 1.0, -torch.inf, 2.0], [1.0, 0.0, 2.0, 3.0]],
    "certain": [[0.0, torch.inf, 1.0, 2.0], [1.0, 0.0, 2.0, 3.0]],
    "nothing left": [[-torch.inf] * 4, [1.0, 0.0, 2.0, 3.0]],
    "not a number": [[0.0, torch.nan, 1.0, 2.0], [1.0, 0.0, 2.0, 3.0]],
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("K", [4, 40], ids=["K=4", "K=40"])
def test_extreme_logits(simd, name, K):
    """One such row among others leaves those as they are."""
    row_MK = torch.tensor(EXTREMES[name]).repeat(1, K // 4)
    logits_MBK, target_B = case(2, 7, K)
    logits_MBK = logits_MBK.detach().clone()
    logits_MBK[:, 3] = row_MK
    assert_as_exact_as_eager(logits_MBK, target_B.clamp(max=1), torch.ones(2, 2))


def test_many_rows_of_few_classes(simd):
    """The product of what their exponentials add up to is beyond what a double holds."""
    _, target_B = case(2, 1500, 3)
    assert_as_exact_as_eager(torch.zeros(2, 1500, 3, requires_grad=True), target_B, torch.ones(2, 2))


def test_the_number_of_threads_changes_no_bit(simd):
    logits_MBK, target_B = case(3, 50, 1000)
    results = []
    for threads in (1, 2):
        with harness.threads(threads):
            results.append(OP(logits_MBK.detach(), target_B, torch.ones(3, 3), 1.0, 0.0, -100, True))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_evaluation_makes_no_gradient():
    logits_MBK, target_B = case(3, 5, 10)
    with torch.no_grad():
        loss, _ = mimic_loss(logits_MBK, target_B, torch.ones(3, 3), impl="cpp")
    assert not loss.requires_grad
    assert OP(logits_MBK.detach(), target_B, torch.ones(3, 3), 1.0, 0.0, -100, False)[2].shape == (0,)


@pytest.mark.parametrize("factor", [1.0, -2.5])
def test_backward_scales_and_can_run_twice(factor):
    logits_MBK, target_B = case(3, 5, 10)
    weights_MM = torch.ones(3, 3)
    eager = factor * mimic_loss(logits_MBK, target_B, weights_MM, impl="eager")[0]
    (expected,) = torch.autograd.grad(eager, logits_MBK)
    loss = factor * mimic_loss(logits_MBK, target_B, weights_MM, impl="cpp")[0]
    first, second = (torch.autograd.grad(loss, logits_MBK, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)


def test_a_second_derivative_is_refused_in_words():
    logits_MBK, target_B = case(2, 3, 4)
    loss, _ = mimic_loss(logits_MBK, target_B, torch.ones(2, 2), impl="cpp")
    (grad,) = torch.autograd.grad(loss**2, logits_MBK, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative: use impl='eager'"):
        grad.sum().backward()


def test_a_forward_derivative_is_refused():
    logits_MBK, target_B = case(2, 3, 4)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp is not implemented"):
        dual_MBK = torch.autograd.forward_ad.make_dual(logits_MBK.detach(), torch.ones(2, 3, 4))
        mimic_loss(dual_MBK, target_B, torch.ones(2, 2), impl="cpp")


def test_functional_gradient():
    logits_MBK, target_B = case(3, 5, 10)
    weights_MM = torch.ones(3, 3)
    ours = torch.func.grad(lambda z: mimic_loss(z, target_B, weights_MM, impl="cpp")[0])(logits_MBK.detach())
    _, expected = outcome(mimic_loss_eager, logits_MBK, target_B, weights_MM)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-7)


def test_autocast():
    features_BD, target_B = torch.randn(6, 8), torch.randint(5, (6,))
    heads = [torch.nn.Linear(8, 5) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        logits_MBK = torch.stack([head(features_BD) for head in heads])
        loss, _ = mimic_loss(logits_MBK, target_B, torch.ones(3, 3))
        expected, _ = mimic_loss(logits_MBK, target_B, torch.ones(3, 3), impl="eager")
    assert logits_MBK.dtype == torch.bfloat16 and loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(head.weight.grad.isfinite().all() for head in heads)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_opcheck(dtype):
    logits_MBK, target_B = case(3, 5, 10, dtype)
    torch.library.opcheck(OP, (logits_MBK, target_B, torch.ones(3, 3), 1.0, 0.1, -100, True))
    torch.library.opcheck(OP, (logits_MBK.detach(), target_B, torch.ones(3, 3), 2.0, 0.0, -100, False))
    torch.library.opcheck(torch.ops.fastdhm.scale_, (torch.randn(3, 5).to(dtype), torch.tensor(2.0)))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiles_into_one_graph_forward_and_backward():
    logits_MBK, target_B = case(3, 8, 10)
    weights_MM = torch.ones(3, 3)

    @torch.compile(fullgraph=True)
    def compiled(logits_MBK, target_B, weights_MM):
        return mimic_loss(2 * logits_MBK, target_B, weights_MM, impl="cpp")

    for scale in (1.0, 0.5):  # changed weights are no reason to compile again
        with torch.compiler.set_stance("default" if scale == 1 else "fail_on_recompile"):
            ours = outcome(compiled, logits_MBK, target_B, scale * weights_MM)
        expected = outcome(lambda z, *a: mimic_loss_eager(2 * z, *a), logits_MBK, target_B, scale * weights_MM)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_compiled_step_checks_its_targets_too():
    compiled = torch.compile(mimic_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"target_B holds 5: needs a class in \[0, 4\)"):
        compiled(torch.zeros(2, 3, 4), torch.tensor([0, 5, 1]), torch.ones(2, 2))


def test_without_weights_nothing_is_read(simd):
    logits_MBK = torch.full((2, 3, 40), torch.nan, requires_grad=True)
    loss, terms_MM = mimic_loss(logits_MBK, torch.tensor([0, 1, 2]), torch.zeros(2, 2), impl="cpp")
    loss.backward()
    assert loss == 0 and (terms_MM == 0).all() and (logits_MBK.grad == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_an_unused_branch_is_not_read(simd, dtype):
    logits_MBK, target_B = case(4, 9, 70, dtype)
    broken = logits_MBK.detach().clone()
    broken[2] = torch.nan
    weights_MM = weights("random", 4) + 0.1
    weights_MM[2], weights_MM[:, 2] = 0, 0
    terms_MM, grad_MBK = outcome(lambda *a: mimic_loss(*a, impl="cpp"), broken, target_B, weights_MM)
    expected_MM, expected = outcome(mimic_loss_eager, logits_MBK, target_B, weights_MM)
    torch.testing.assert_close(terms_MM, expected_MM, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad_MBK, expected, rtol=2e-2, atol=1e-5)
    assert (grad_MBK[2] == 0).all()


def test_float16_gradients_keep_values_that_loss_scaling_saves(simd):
    """Before the scaling most of them are below what float16 can hold."""
    logits_MBK, target_B = case(3, 64, 1000, torch.float16)

    def scaled(impl):
        loss, _ = mimic_loss(logits_MBK, target_B, torch.ones(3, 3), impl=impl)
        return torch.autograd.grad(1024 * loss, logits_MBK)[0]

    ours, expected = scaled("cpp"), scaled("eager")
    assert (ours != 0).double().mean() > 0.99
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("size", [1e9, 1e30])
def test_a_row_without_label_may_be_far_apart(simd, size):
    logits_MBK = torch.tensor([[[size, 0.0, 0.0, 0.0]]], requires_grad=True)
    loss, _ = mimic_loss(logits_MBK, torch.tensor([-100]), torch.ones(1, 1), impl="cpp")
    loss.backward()
    assert (logits_MBK.grad == 0).all()


@pytest.mark.parametrize("impl", ["eager", "cpp"])
def test_terms_without_weight_spread_no_nan(impl):
    logits_MBK, target_B = case(3, 2, 4)
    logits_MBK = logits_MBK.detach().clone()
    logits_MBK[1, 0, 0] = torch.nan
    _, grad_MBK = outcome(lambda *a: mimic_loss(*a, impl=impl), logits_MBK, target_B, torch.eye(3))
    assert grad_MBK[[0, 2]].isfinite().all() and grad_MBK[1, 1].isfinite().all()
    assert grad_MBK[1, 0].isnan().all()


def test_a_graph_is_used_up_and_guards_what_it_needs_again():
    logits_MBK, target_B = case(3, 5, 10)
    weights_MM = torch.ones(3, 3)
    loss, _ = mimic_loss(logits_MBK, target_B, weights_MM, impl="cpp")
    loss.backward(retain_graph=True)
    weights_MM.mul_(5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss, _ = mimic_loss(logits_MBK, target_B, weights_MM, impl="cpp")
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_batched_gradients():
    logits_MBK, target_B = case(3, 5, 10)
    factors = torch.tensor([1.0, -2.0])
    loss, _ = mimic_loss(logits_MBK, target_B, torch.ones(3, 3), impl="cpp")
    (batched,) = torch.autograd.grad(loss, logits_MBK, factors, is_grads_batched=True)
    _, single = outcome(mimic_loss_eager, logits_MBK, target_B, torch.ones(3, 3))
    torch.testing.assert_close(batched.double(), factors[:, None, None, None] * single, rtol=1e-4, atol=1e-6)


def test_forward_mode_of_torch_func_is_refused_in_words():
    logits_MBK, target_B = torch.randn(2, 4, 5), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="no forward-mode derivative: use impl='eager'"):
        torch.func.jacfwd(lambda z: mimic_loss(z, target_B, torch.ones(2, 2), impl="cpp")[0])(logits_MBK)


def test_vmap_is_refused_in_words():
    logits_MBK, target_B = case(3, 5, 10)
    with pytest.raises(RuntimeError, match="no form for torch.vmap: use impl='eager'"):
        torch.func.vmap(lambda z: mimic_loss(z, target_B, torch.ones(3, 3), impl="cpp")[0])(logits_MBK.detach()[None])


@pytest.mark.parametrize(
    ("logits_shape", "target_shape", "weights_shape"),
    [((3, 4, 0), (4,), (3, 3)), ((3, 4, 5), (1,), (3, 3)), ((3, 4, 5), (4,), (2, 2)), ((4, 5), (4,), (3, 3))],
    ids=["K = 0", "short target", "small weights", "rank"],
)
def test_the_op_itself_reads_nothing_out_of_bounds(logits_shape, target_shape, weights_shape):
    target_B = torch.zeros(target_shape, dtype=torch.int64)
    with pytest.raises(ValueError, match="must be"):
        OP(torch.zeros(logits_shape), target_B, torch.ones(weights_shape), 1.0, 0.0, -100, True)


@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < (2, 15),
    reason=f"torch.compile of torch {torch.__version__} does not see that torch.func.grad's argument needs a gradient",
)
def test_functional_gradient_compiles_into_one_graph():
    logits_MBK, target_B = case(3, 5, 10)
    gradient = torch.func.grad(lambda z: mimic_loss(z, target_B, torch.ones(3, 3), impl="cpp")[0])
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits_MBK.detach()), gradient(logits_MBK.detach()))


def test_the_choice_of_a_form_can_be_compiled():
    """It is made while torch.compile traces; on a GPU it once went through Python's import system, which is refused."""

    def chosen(x: Tensor) -> Tensor:
        return x + use_fused("auto", "cuda") + use_fused("auto", "cpu")

    compiled = torch.compile(chosen, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)) == chosen(torch.zeros(1))
