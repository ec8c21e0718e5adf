"""The Triton kernels against the eager reference in float64.

On a CUDA device, or through Triton's interpreter where TRITON_INTERPRET=1 was set before triton was imported;
test_interpreter.py runs this file so.

Legend: M branches, B batch, K classes.
"""

import os

import pytest
import torch

from fastdhm.kernels import mimic_loss as kernel
from fastdhm.ops import _fused_mimic_loss
from fastdhm.ops.mimic_loss import mimic_loss_eager

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# the interpreter's numpy warns of infinities
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning") if INTERPRETED else pytest.mark.gpu
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


def weights_of(kind, M):
    """The matrices of the paper's methods, or random ones with zeros among them."""
    generator = torch.Generator().manual_seed(M)
    ones_MM, first_M = torch.ones(M, M, dtype=F64), torch.arange(M) == 0
    return {
        "dhm": ones_MM,
        "dsl": torch.eye(M, dtype=F64),
        "top-down": ones_MM.triu(),
        "baseline": (first_M[:, None] & first_M).to(F64),
        "random": torch.rand(M, M, generator=generator, dtype=F64) * (torch.rand(M, M, generator=generator) > 0.3),
    }[kind]


def case(M, B, K, dtype=F32, weights="dhm", seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits_MBK = (3 * torch.randn(M, B, K, generator=generator, dtype=F64)).to(dtype)
    target_B = torch.randint(K, (B,), generator=generator)
    return logits_MBK.to(DEVICE), target_B.to(DEVICE), weights_of(weights, M).to(DEVICE)


def eager(logits_MBK, target_B, weights_MM, dtype, options, target2_B=None, share_B=None, row_weight_B=None):
    logits_MBK = logits_MBK.detach().to(dtype).requires_grad_()
    mix = None if target2_B is None else (target2_B, share_B)
    loss, terms_MM = mimic_loss_eager(logits_MBK, target_B, weights_MM.to(dtype), *options, mix, row_weight_B)
    (grad_MBK,) = torch.autograd.grad(loss, logits_MBK)
    return loss.detach(), terms_MM, grad_MBK


def check(logits_MBK, target_B, weights_MM, temperature=1.0, smoothing=0.0, ignore_index=-100, labels=()):
    """Loss, terms and gradient are the reference's in float64, to within what it loses in our precision itself."""
    options = (temperature, smoothing, ignore_index)
    wide = F64 if logits_MBK.dtype == F64 else F32
    ours = kernel.mimic_loss(logits_MBK, target_B, weights_MM, *options, True, *labels)
    exact = eager(logits_MBK, target_B, weights_MM, F64, options, *labels)
    rounded = eager(logits_MBK, target_B, weights_MM, wide, options, *labels)
    assert [tensor.dtype for tensor in ours] == [wide, wide, F32 if logits_MBK.dtype == F16 else logits_MBK.dtype]
    assert ours[2].is_contiguous()
    for name, our, true, other in zip(("loss", "terms", "gradient"), ours, exact, rounded, strict=True):
        finite = true.isfinite()
        lost = (other - true)[finite].abs().max() if finite.any() else torch.zeros(())
        size = true[finite].abs().max() if finite.any() else torch.zeros(())
        info = torch.finfo(our.dtype)
        torch.testing.assert_close(
            our.to(F64), true, rtol=info.eps, equal_nan=True,
            atol=float(2 * lost + 4 * torch.finfo(wide).eps * size + info.tiny * info.eps),
            msg=lambda message, name=name: f"{name}: {message}",
        )  # fmt: skip
    return ours


@pytest.mark.parametrize(
    ("M", "B", "K", "dtype", "weights", "temperature", "smoothing"),
    [
        (1, 1, 1, F32, "dhm", 1.0, 0.0),
        (1, 3, 1000, BF16, "baseline", 1.0, 0.1),
        (2, 1, 2, F16, "dsl", 1.0, 0.0),
        (2, 7, 10, F64, "random", 3.0, 0.1),
        (2, 2, 4097, BF16, "dhm", 1.0, 0.0),
        (3, 1, 1, F64, "random", 0.5, 0.0),
        (3, 16, 10, F32, "dhm", 1.0, 0.0),
        (3, 5, 100, F32, "top-down", 1.0, 0.1),
        (3, 5, 100, F16, "dhm", 3.0, 0.0),
        (3, 4, 1000, F32, "dhm", 1.0, 0.0),
        (3, 3, 1000, BF16, "random", 4.0, 1.0),
        (3, 3, 1000, F16, "dhm", 1.0, 0.0),
        (3, 2, 1023, F64, "baseline", 1.0, 0.0),
        (3, 2, 4097, F32, "dhm", 2.0, 0.1),
        (4, 3, 1023, BF16, "dsl", 1.0, 0.0),
        (4, 2, 100, F64, "dhm", 1.0, 0.0),
        (5, 3, 10, F32, "random", 1.0, 0.0),
        (7, 2, 1000, F32, "top-down", 0.5, 0.0),
        (8, 2, 100, BF16, "dhm", 1.0, 0.1),
        (8, 1, 4097, F32, "random", 1.0, 0.0),
        (16, 1, 1000, F32, "random", 1.0, 0.1),
        (17, 1, 100, BF16, "dhm", 2.0, 0.0),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_loss_terms_and_gradient(M, B, K, dtype, weights, temperature, smoothing):
    check(*case(M, B, K, dtype, weights), temperature, smoothing)


def labels_of(B, K, dtype=F32):
    """The second targets, shares and row weights, with the special numbers among them."""
    generator = torch.Generator().manual_seed(B)
    target2_B, numbers_2B = torch.randint(K, (B,), generator=generator), torch.rand(2, B, generator=generator)
    numbers_2B[0, 1::4], numbers_2B[0, 2::4], numbers_2B[1, 3::4] = 0, 1, 0
    share_B, row_weight_B = numbers_2B.to(DEVICE, dtype)
    return target2_B.to(DEVICE), share_B, 5 * row_weight_B


@pytest.mark.parametrize("given", ["mix", "weights", "both"])
@pytest.mark.parametrize(
    ("M", "B", "K", "dtype", "weights", "temperature", "smoothing"),
    [
        (1, 5, 1, F32, "dhm", 1.0, 0.1),
        (3, 9, 10, F32, "random", 1.0, 0.0),
        (3, 5, 100, BF16, "dhm", 3.0, 0.1),
        (3, 5, 100, F16, "dsl", 1.0, 1.0),
        (2, 6, 33, F64, "random", 2.0, 0.1),
        (3, 4, 4097, F32, "dhm", 1.0, 0.1),
        (5, 5, 10, F64, "random", 1.0, 0.1),
        (8, 4, 100, BF16, "dhm", 1.0, 0.0),
        (17, 4, 40, F32, "dhm", 2.0, 0.1),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_mixed_and_weighted_labels(M, B, K, dtype, weights, temperature, smoothing, given):
    logits_MBK, target_B, weights_MM = case(M, B, K, dtype, weights)
    target2_B, share_B, row_weight_B = labels_of(B, K, F64 if dtype == F64 else F32)
    target_B[0] = target2_B[-1] = -100
    mixed = (target2_B, share_B) if given != "weights" else (None, None)
    labels = (*mixed, row_weight_B if given != "mix" else None)
    check(logits_MBK, target_B, weights_MM, temperature, smoothing, labels=labels)


def test_labels_of_any_strides_and_types():
    logits_MBK, target_B, weights_MM = case(2, 5, 20)
    target2_B, share_B, row_weight_B = (x_B.repeat_interleave(3)[::3] for x_B in labels_of(5, 20))
    check(logits_MBK, target_B, weights_MM, labels=(target2_B, share_B.half(), row_weight_B.bfloat16()))


def test_an_excluded_class_of_share_0_and_a_row_of_weight_0_add_nothing():
    logits_MBK, target_B, weights_MM = case(2, 3, 6, weights="dsl")
    logits_MBK[:, :, 4] = -torch.inf
    target_B[:], target2_B = 4, torch.ones_like(target_B)
    share_B, weight_B = torch.tensor([[0.0, 0.5, 0.0], [1.0, 0.0, 2.0]], device=DEVICE)
    loss, _, grad_MBK = check(logits_MBK, target_B, weights_MM, labels=(target2_B, share_B, weight_B))
    assert loss.isfinite() and grad_MBK.isfinite().all()


def test_rows_without_any_weight():
    logits_MBK, target_B, weights_MM = case(2, 3, 6)
    _, terms_MM, _ = check(logits_MBK, target_B, weights_MM, labels=(None, None, torch.zeros(3, device=DEVICE)))
    assert terms_MM.diag().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("place", "wrong"), [(0, 6), (0, -1), (1, -0.1), (1, 1.1), (1, float("nan")), (2, -1.0), (2, float("inf"))]
)
def test_wrong_labels_show(place, wrong):
    logits_MBK, target_B, weights_MM = case(2, 3, 6)
    labels = [torch.zeros_like(target_B), torch.full((3,), 0.5, device=DEVICE), torch.ones(3, device=DEVICE)]
    labels[place][1] = wrong
    loss, terms_MM, _ = kernel.mimic_loss(logits_MBK, target_B, weights_MM, 1.0, 0.0, -100, True, *labels)
    assert loss.isnan() and terms_MM.diag().isnan().all() and terms_MM[0, 1].isfinite()


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (1.0, 0.1), (3.0, 0.1)])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_rows_of_many_tiles(dtype, temperature, smoothing, monkeypatch):
    monkeypatch.setattr(kernel, "tile", lambda M, *_: (4, 32, 1))
    logits_MBK, target_B, weights_MM = case(3, 2, 133, dtype, "random")
    logits_MBK[0, 0, :40] = -torch.inf  # a first tile without anything
    logits_MBK[1] += torch.linspace(-20, 20, 133, device=DEVICE).to(dtype)  # the maximum moves in every tile
    logits_MBK[2, 1, :33] = -1e4
    target_B.fill_(120)
    check(logits_MBK, target_B, weights_MM, temperature, smoothing)


def test_more_rows_than_programs(monkeypatch):
    monkeypatch.setattr(kernel, "MAX_PROGRAMS", 4)
    check(*case(2, 11, 10, weights="random"))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "every-other-row", "offset"])
def test_any_strides(layout):
    logits_MBK, target_B, weights_MM = case(3, 4, 100, BF16, "random")
    strided_MBK = {
        "transposed": logits_MBK.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        "sliced": torch.stack([logits_MBK, logits_MBK + 1], -1)[..., 0],
        "expanded": logits_MBK[:, :1].expand(-1, 4, -1),
        "every-other-row": torch.cat([logits_MBK, logits_MBK + 1], 1)[:, ::2],
        "offset": torch.cat([logits_MBK, logits_MBK + 1], 2)[..., 3:102],
    }[layout]
    assert not strided_MBK.is_contiguous()
    check(strided_MBK, torch.stack([target_B, target_B], 1)[:, 0].clamp(max=98), weights_MM.T.bfloat16())


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_an_unused_branch_is_not_read(garbage):
    logits_MBK, target_B, weights_MM = case(3, 3, 40, weights="random")
    weights_MM[1], weights_MM[:, 1] = 0, 0
    clean_MBK, logits_MBK[1] = logits_MBK.clone(), garbage
    _, terms_MM, grad_MBK = ours = check(logits_MBK, target_B, weights_MM)
    assert not terms_MM[1].any() and not terms_MM[:, 1].any() and not grad_MBK[1].any()
    for mine, other in zip(ours, check(clean_MBK, target_B, weights_MM), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("ignored", [[], [1, 4], [0, 1, 2, 3, 4]], ids=["none", "some", "all"])
@pytest.mark.parametrize("ignore_index", [-100, 3, 2**40])
def test_ignored_rows_only_mimic(ignored, ignore_index):
    logits_MBK, target_B, weights_MM = case(2, 5, 7)
    logits_MBK[0, 1, 0] = -torch.inf
    target_B[target_B == ignore_index] = 2
    target_B[1] = 0
    target_B[ignored] = ignore_index
    _, terms_MM, _ = check(logits_MBK, target_B, weights_MM, 1.0, 0.0, ignore_index)
    assert terms_MM[0, 0].isinf() == (not ignored)
    if len(ignored) == 5:
        assert terms_MM.diag().tolist() == [0, 0]


def test_terms_of_a_batch_without_rows_are_nan_for_used_branches():
    logits_MBK, target_B, weights_MM = case(3, 0, 5)
    weights_MM[1], weights_MM[:, 1] = 0, 0
    loss, terms_MM, grad_MBK = kernel.mimic_loss(logits_MBK, target_B, weights_MM, 1.0, 0.0, -100, True)
    assert loss.isnan() and grad_MBK.shape == (3, 0, 5)
    assert terms_MM.isnan().tolist() == [[True, False, True], [False, False, False], [True, False, True]]


@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_logits(size, smoothing):
    logits_MBK = torch.tensor([[[size, -size, 0.0, size]], [[-size, size, 0.0, -size]]], device=DEVICE)
    check(logits_MBK, torch.tensor([1], device=DEVICE), torch.ones(2, 2, device=DEVICE), 1.0, smoothing)


def test_ties():
    logits_MBK, target_B, weights_MM = case(3, 2, 9)
    check(logits_MBK.round().clamp(-1, 1), target_B, weights_MM)


def test_a_class_that_all_branches_exclude_costs_nothing():
    logits_MBK, target_B, weights_MM = case(2, 3, 6)
    logits_MBK[..., 4] = -torch.inf
    target_B.fill_(1)
    loss, terms_MM, _ = check(logits_MBK, target_B, weights_MM)
    assert loss.isfinite() and terms_MM.isfinite().all()


@pytest.mark.parametrize("teacher", [0.3, -200.0, -1e4, -1e30])
def test_a_class_that_only_the_student_excludes_is_infinitely_far(teacher):
    """However little the teacher gives it, also what no float holds; the gradient stays finite."""
    logits_MBK = torch.tensor([[[0.0, teacher]], [[0.0, -torch.inf]]], device=DEVICE)
    weights_MM = torch.tensor([[0.0, 1.0], [0.0, 0.0]], device=DEVICE)
    loss, _, grad_MBK = check(logits_MBK, torch.tensor([0], device=DEVICE), weights_MM)
    assert loss == torch.inf and grad_MBK.isfinite().all()


def test_a_weight_of_zero_switches_an_infinite_term_off():
    logits_MBK, target_B, weights_MM = case(2, 3, 6)
    logits_MBK[1, :, 4] = -torch.inf
    target_B.fill_(1)
    weights_MM[0, 1] = 0
    loss, terms_MM, grad_MBK = check(logits_MBK, target_B, weights_MM)
    assert terms_MM[0, 1] == torch.inf and loss.isfinite() and grad_MBK.isfinite().all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_broken_logits_of_a_used_branch_show(broken):
    logits_MBK, target_B, weights_MM = case(2, 3, 6)
    logits_MBK[1, 1] = broken
    loss, terms_MM, grad_MBK = kernel.mimic_loss(logits_MBK, target_B, weights_MM, 1.0, 0.0, -100, True)
    assert loss.isnan() and terms_MM.isnan().tolist() == [[False, True], [True, True]]
    assert grad_MBK[:, 1].isnan().all() and grad_MBK[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("target", [-1, 6, 2**40])
def test_a_target_out_of_range_shows(target):
    logits_MBK, target_B, weights_MM = case(2, 3, 6)
    target_B[1] = target
    loss, terms_MM, grad_MBK = kernel.mimic_loss(logits_MBK, target_B, weights_MM, 1.0, 0.0, -100, True)
    assert loss.isnan() and terms_MM.diag().isnan().all()
    assert grad_MBK[:, 1].isnan().all() and grad_MBK[:, [0, 2]].isfinite().all()


def test_branches_that_agree_mimic_for_free():
    logits_MBK, target_B, _ = case(1, 3, 50)
    weights_MM = 1 - torch.eye(3, device=DEVICE)
    loss, terms_MM, grad_MBK = kernel.mimic_loss(
        logits_MBK.expand(3, -1, -1), target_B, weights_MM, 2.0, 0.0, -100, True
    )
    assert loss == 0 and not grad_MBK.any() and torch.equal(terms_MM, terms_MM.diag().diag())


def test_without_gradient():
    logits_MBK, target_B, weights_MM = case(3, 4, 33, BF16)
    with_gradient = kernel.mimic_loss(logits_MBK, target_B, weights_MM, 1.0, 0.1, -100, True)
    loss, terms_MM, grad = kernel.mimic_loss(logits_MBK, target_B, weights_MM, 1.0, 0.1, -100, False)
    assert torch.equal(loss, with_gradient[0]) and torch.equal(terms_MM, with_gradient[1])
    assert grad.shape == (0,) and grad.dtype == BF16


def test_the_same_bits_again(monkeypatch):
    monkeypatch.setattr(kernel, "MAX_PROGRAMS", 4 if INTERPRETED else 1024)
    arguments = (*case(3, 9 if INTERPRETED else 3000, 100), 2.0, 0.1, -100, True)
    first, second = kernel.mimic_loss(*arguments), kernel.mimic_loss(*arguments)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("numel", [0, 1, 2049, 9000])
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
def test_scale(dtype, numel, monkeypatch):
    monkeypatch.setattr(kernel, "MAX_PROGRAMS", 3)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(numel, generator=generator, dtype=F64).to(DEVICE, dtype)
    factor = torch.tensor(0.3, dtype=F64 if dtype == F64 else F32, device=DEVICE)
    scaled, kept = grad.clone(), grad.clone()
    kernel.scale_(scaled, factor), kernel.scale_(kept, torch.ones_like(factor))
    # the interpreter cuts bfloat16 off where a GPU rounds it
    torch.testing.assert_close(scaled, (grad.to(factor.dtype) * factor).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(kept, grad)


@pytest.fixture
def op(monkeypatch):
    """The op of torch as users reach it, with autograd; under the interpreter its CPU form is Triton's too."""
    library = torch.library.Library("fastdhm", "IMPL")
    if DEVICE == "cpu":
        library.impl("mimic_loss", kernel.mimic_loss, "CPU", allow_override=True)
        library.impl("scale_", kernel.scale_, "CPU", allow_override=True)
    yield _fused_mimic_loss.mimic_loss
    library._destroy()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradcheck_with_frozen_teachers(op, temperature):
    """Numerical gradients see the teachers move too; so each branch is checked as student of constants."""
    logits_MBK, target_B, weights_MM = case(3, 2, 5, F64, "random")
    for q in range(3):
        column_MM = torch.zeros_like(weights_MM)
        column_MM[:, q] = 0.1 + weights_MM[:, q]

        def loss_of(student_BK, q=q, column_MM=column_MM):
            stack_MBK = torch.stack([student_BK if m == q else logits_MBK[m] for m in range(3)])
            need_grad = torch.is_grad_enabled() and stack_MBK.requires_grad
            return op(stack_MBK, target_B, column_MM, temperature, 0.1, -100, need_grad)[0]

        assert torch.autograd.gradcheck(loss_of, logits_MBK[q].clone().requires_grad_(), fast_mode=True)
