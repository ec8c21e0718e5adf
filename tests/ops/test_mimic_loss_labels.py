"""Mixed labels and row weights of the mimicking loss, in every form, against torch's cross_entropy of soft targets.

Legend: M branches, B batch, K classes.
"""

import functools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdhm.benchmarks.harness import timing as harness
from fastdhm.ops import _extension
from fastdhm.ops.mimic_loss import MimicLoss, check_values, mimic_loss_eager
from fastdhm.ops.mimic_loss import mimic_loss as public_mimic_loss

SIMDS = ["none", *_extension.require("tests").simds()] if _extension.available() else []
F32, F64 = torch.float32, torch.float64
needs_cpp = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))


@pytest.fixture(params=["eager", *(f"cpp-{simd}" for simd in SIMDS)])
def mimic_loss(request):
    """The public function in one form; for C++ also each instruction set that this processor has."""
    impl, _, simd = request.param.partition("-")
    module, best = (_extension.require("tests"), _extension.require("tests").simd()) if simd else (None, None)
    if module:
        module.set_simd(simd)
    yield functools.partial(public_mimic_loss, impl=impl)
    if module:
        module.set_simd(best)


def case(M, B, K, seed=0, dtype=F64):
    """Logits, targets, weights, a mix and row weights, with zeros, ones and equal classes among them."""
    generator = torch.Generator().manual_seed(seed)
    logits_MBK = 3 * torch.randn(M, B, K, generator=generator, dtype=F64)
    target_B, target2_B = torch.randint(K, (2, B), generator=generator)
    share_B, row_weight_B = torch.rand(2, B, generator=generator, dtype=F64)
    share_B[1::4], share_B[2::5], row_weight_B[3::4] = 0, 1, 0
    weights_MM = torch.rand(M, M, generator=generator, dtype=F64)
    return logits_MBK.to(dtype), target_B, weights_MM, (target2_B, share_B), 3 * row_weight_B


def soft_targets(target_B, mix, K):
    """What torch calls class probabilities, [B, K]; rows without a label are 0."""
    one_hot_BK = F.one_hot(target_B.clamp(min=0), K).double()
    if mix is None:
        return one_hot_BK
    return mix[1][:, None] * one_hot_BK + (1 - mix[1])[:, None] * F.one_hot(mix[0].clamp(min=0), K)


def by_torch(logits_BK, target_B, mix, row_weight_B, smoothing):
    soft_BK = soft_targets(target_B, mix, logits_BK.shape[1])
    ce_B = F.cross_entropy(logits_BK, soft_BK, label_smoothing=smoothing, reduction="none")
    weight_B = torch.ones_like(ce_B) if row_weight_B is None else row_weight_B
    has_label_B = (target_B >= 0) & (True if mix is None else mix[0] >= 0)
    weight_B = weight_B * has_label_B
    return (weight_B * ce_B).sum() / weight_B.sum().where(weight_B.sum() > 0, 1)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    M=st.integers(1, 4), B=st.integers(1, 9), K=st.integers(1, 70), seed=st.integers(0, 999),
    temperature=st.sampled_from([0.5, 1.0, 3.0]), smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    dtype=st.sampled_from([F64, F32, torch.bfloat16, torch.float16]), label_dtype=st.sampled_from([F64, F32]),
    mixed=st.booleans(), weighted=st.booleans(), unlabelled=st.booleans(), strided=st.booleans(),
)  # fmt: skip
def test_labels_are_those_of_torch(
    mimic_loss, M, B, K, seed, temperature, smoothing, dtype, label_dtype, mixed, weighted, unlabelled, strided
):
    logits_MBK, target_B, weights_MM, mix, row_weight_B = case(M, B, K, seed, dtype)
    if unlabelled:
        target_B[B // 2 :: 3], mix[0][B // 3 :: 4] = -100, -100
    mix, row_weight_B = (mix[0], mix[1].to(label_dtype)), row_weight_B.to(label_dtype)
    if strided:
        logits_MBK = logits_MBK.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        *mix, row_weight_B = (x_B.repeat_interleave(2)[::2] for x_B in (*mix, row_weight_B))
    mix, row_weight_B = tuple(mix) if mixed else None, row_weight_B if weighted else None
    options = {"temperature": temperature, "label_smoothing": smoothing}
    ours, theirs = logits_MBK.clone().requires_grad_(), logits_MBK.double().requires_grad_()
    loss, terms_MM = mimic_loss(ours, target_B, weights_MM, **options, mix=mix, row_weight_B=row_weight_B)
    loss.backward()

    off_diagonal_MM = weights_MM - weights_MM.diag().diag()
    expected, expected_MM = mimic_loss_eager(theirs, target_B, off_diagonal_MM, temperature)
    expected_MM = expected_MM - expected_MM.diag().diag()
    wide = [None if x is None else x.double() for x in (mix and mix[1], row_weight_B)]
    for m in range(M):
        term = by_torch(theirs[m], target_B, mix and (mix[0], wide[0]), wide[1], smoothing)
        expected_MM[m, m], expected = term.detach(), expected + weights_MM[m, m] * term
    expected.backward()
    rough = {F64: 1e-9, F32: 1e-4}.get(dtype, 1e-2)
    if M > 1:  # alone, a branch has no pairs, and is none of those that count
        torch.testing.assert_close(terms_MM.double(), expected_MM, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=rough, atol=0.1 * rough)


@pytest.mark.parametrize("K", [7, 200])
def test_class_weights_are_torchs(mimic_loss, K):
    logits_MBK, target_B, _, _, _ = case(2, 9, K)
    target_B[4] = -100
    weight_K = torch.linspace(0.1, 4, K, dtype=F64)
    row_weight_B = weight_K[target_B.clamp(min=0)]
    ours, theirs = (logits_MBK.clone().requires_grad_() for _ in range(2))
    loss, terms_MM = mimic_loss(ours, target_B, torch.eye(2), row_weight_B=row_weight_B)
    expected = sum(F.cross_entropy(z_BK, target_B, weight=weight_K) for z_BK in theirs)
    loss.backward(), expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms_MM.diag().sum(), expected.detach())
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradcheck_with_frozen_teachers(mimic_loss):
    """Numerical gradients see the teachers move too; so each branch is checked as student of constants."""
    logits_MBK, target_B, weights_MM, mix, row_weight_B = case(3, 6, 5)
    target_B[5] = -100
    for q in range(3):
        column_MM = torch.zeros_like(weights_MM)
        column_MM[:, q] = weights_MM[:, q]

        def loss_of(student_BK, q=q, column_MM=column_MM):
            stack_MBK = torch.stack([student_BK if m == q else logits_MBK[m] for m in range(3)])
            labels = {"label_smoothing": 0.1, "mix": mix, "row_weight_B": row_weight_B}
            return mimic_loss(stack_MBK, target_B, column_MM, temperature=2.0, **labels)[0]

        assert torch.autograd.gradcheck(loss_of, logits_MBK[q].clone().requires_grad_())


def gradient(mimic_loss, logits_MBK, target_B, weights_MM, **options):
    logits_MBK = logits_MBK.detach().requires_grad_()
    loss, terms_MM = mimic_loss(logits_MBK, target_B, weights_MM, label_smoothing=0.1, **options)
    loss.backward()
    return terms_MM, logits_MBK.grad


def test_what_changes_nothing(mimic_loss):
    logits_MBK, target_B, weights_MM, (target2_B, share_B), _ = case(3, 9, 40, dtype=F32)
    ones_B = torch.ones(9)
    plain = gradient(mimic_loss, logits_MBK, target_B, weights_MM)
    same = [
        {"mix": (target2_B, ones_B)},
        {"mix": (target_B, share_B)},
        {"row_weight_B": ones_B},
        {"row_weight_B": 0.3 * ones_B, "mix": (target2_B, ones_B)},
    ]
    for options in same:
        torch.testing.assert_close(gradient(mimic_loss, logits_MBK, target_B, weights_MM, **options), plain)
    swapped = gradient(mimic_loss, logits_MBK, target2_B, weights_MM, mix=(target_B, 1 - share_B))
    mixed = gradient(mimic_loss, logits_MBK, target_B, weights_MM, mix=(target2_B, share_B))
    torch.testing.assert_close(swapped, mixed)


def test_a_row_of_weight_zero_is_one_without_a_label(mimic_loss):
    logits_MBK, target_B, weights_MM, mix, _ = case(2, 6, 33, dtype=F32)
    logits_MBK[0, 1, target_B[1]], logits_MBK[0, 1, mix[0][1]] = -torch.inf, -torch.inf
    weights_MM[0, 1] = 0
    weight_B = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    ignored_B = target_B.where(weight_B > 0, -100)
    ours = gradient(mimic_loss, logits_MBK, target_B, weights_MM, mix=mix, row_weight_B=weight_B)
    assert ours[1].isfinite().all()
    torch.testing.assert_close(ours, gradient(mimic_loss, logits_MBK, ignored_B, weights_MM, mix=mix))
    second = (mix[0].where(weight_B > 0, -100), mix[1])
    torch.testing.assert_close(ours, gradient(mimic_loss, logits_MBK, target_B, weights_MM, mix=second))


def test_without_any_weight_the_cross_entropies_are_0(mimic_loss):
    logits_MBK, target_B, weights_MM, mix, weight_B = case(2, 5, 8)
    terms_MM, _ = gradient(mimic_loss, logits_MBK, target_B, weights_MM, mix=mix, row_weight_B=0 * weight_B)
    assert terms_MM.diag().tolist() == [0, 0] and terms_MM[0, 1] > 0


@pytest.mark.parametrize(("share", "finite"), [(0.0, True), (1.0, False), (0.5, False)])
def test_an_excluded_class_counts_by_its_share(mimic_loss, share, finite):
    logits_MBK = torch.tensor([[[-torch.inf, 1.0, 2.0] * 7]], requires_grad=True)
    mix = (torch.tensor([1]), torch.tensor([share]))
    loss, _ = mimic_loss(logits_MBK, torch.tensor([0]), torch.ones(1, 1), mix=mix)
    loss.backward()
    assert loss.isfinite() == finite and logits_MBK.grad.isfinite().all()


def test_labels_get_no_gradient(mimic_loss):
    logits_MBK, target_B, weights_MM, (target2_B, share_B), weight_B = case(2, 5, 8)
    share_B.requires_grad_(), weight_B.requires_grad_(), logits_MBK.requires_grad_()
    mimic_loss(logits_MBK, target_B, weights_MM, mix=(target2_B, share_B), row_weight_B=weight_B)[0].backward()
    assert share_B.grad is None and weight_B.grad is None and logits_MBK.grad is not None


def test_an_empty_batch_has_no_mean(mimic_loss):
    none, empty = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    loss, _ = mimic_loss(torch.zeros(2, 0, 5), none, torch.ones(2, 2), mix=(none, empty), row_weight_B=empty)
    assert loss.isnan()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": torch.zeros(4)}, r"mix is torch.float32 \(4,\): must be \(target2_B, share_B\)"),
        ({"mix": (torch.zeros(4),) * 3}, "mix is a tuple: must be"),
        ({"target2_B": torch.zeros(4)}, r"target2_B is torch.float32 \(4,\): must be an int64 tensor \(4,\)"),
        ({"target2_B": torch.zeros(3, dtype=torch.int64)}, r"target2_B is torch.int64 \(3,\)"),
        ({"target2_B": torch.tensor([0, 5, 1, 0])}, r"target2_B holds 5: needs a class in \[0, 5\)"),
        ({"share_B": 0.5}, "share_B is a float: must be a floating point tensor"),
        ({"share_B": torch.zeros(4, 1)}, r"share_B is torch.float32 \(4, 1\)"),
        ({"share_B": torch.zeros(4, dtype=torch.int64)}, "share_B is torch.int64"),
        ({"share_B": torch.tensor([0.0, 1.5, 0.0, 0.0])}, r"share_B holds 1.5: needs a number in \[0, 1\]"),
        ({"share_B": torch.tensor([0.0, torch.nan, 0.0, 0.0])}, "share_B holds nan"),
        ({"share_B": torch.zeros(4, device="meta")}, "share_B is on meta and the logits on cpu"),
        ({"row_weight_B": torch.ones(5)}, r"row_weight_B is torch.float32 \(5,\)"),
        ({"row_weight_B": torch.ones(4).long()}, "row_weight_B is torch.int64 .*floating point"),
        ({"row_weight_B": torch.tensor([1.0, -2.0, 1.0, 1.0])}, "row_weight_B holds -2: needs a finite number"),
        ({"row_weight_B": torch.tensor([1.0, torch.inf, 1.0, 1.0])}, "row_weight_B holds inf"),
        ({"row_weight_B": torch.ones(4, device="meta")}, "row_weight_B is on meta"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_input_is_named(mimic_loss, changes, message):
    right = {"target2_B": torch.zeros(4, dtype=torch.int64), "share_B": torch.full((4,), 0.5)}
    mix = tuple((right | changes)[name] for name in right)
    options = {"mix": mix} | {name: value for name, value in changes.items() if name not in right}
    with pytest.raises(ValueError, match=message):
        mimic_loss(torch.zeros(2, 4, 5), torch.zeros(4, dtype=torch.int64), torch.ones(2, 2), **options)


def test_the_module_and_the_check_take_them_too():
    logits_MBK, target_B, weights_MM, mix, weight_B = case(3, 4, 5)
    expected = public_mimic_loss(logits_MBK, target_B, weights_MM, mix=mix, row_weight_B=weight_B)
    module = MimicLoss(weights_MM)
    torch.testing.assert_close(module(logits_MBK, target_B, mix=mix, row_weight_B=weight_B), expected)
    check_values(logits_MBK, target_B, weights_MM, -100, mix, weight_B)
    with pytest.raises(ValueError, match="share_B holds"):
        check_values(logits_MBK, target_B, weights_MM, -100, (mix[0], mix[1] + 2), weight_B)


@needs_cpp
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, F64], ids=str)
def test_opcheck(dtype):
    logits_MBK, target_B, weights_MM, mix, weight_B = case(3, 5, 10, dtype=dtype)
    op, settings = torch.ops.fastdhm.mimic_loss, (2.0, 0.1, -100, True)
    for labels in ((*mix, weight_B), (*mix, None), (None, None, weight_B.float())):
        torch.library.opcheck(op, (logits_MBK.requires_grad_(), target_B, weights_MM, *settings, *labels))


@needs_cpp
def test_in_one_graph_and_through_torch_func():
    logits_MBK, target_B, weights_MM, mix, weight_B = case(3, 8, 10)

    def loss_of(logits_MBK, target_B, target2_B, share_B, weight_B):
        labels = {"mix": (target2_B, share_B), "row_weight_B": weight_B}
        return public_mimic_loss(2 * logits_MBK, target_B, weights_MM, impl="cpp", **labels)[0]

    arguments = (target_B, *mix, weight_B)
    eager = mimic_loss_eager(2 * logits_MBK.requires_grad_(), target_B, weights_MM, mix=mix, row_weight_B=weight_B)[0]
    (expected,) = torch.autograd.grad(eager, logits_MBK)
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(logits_MBK, *arguments), logits_MBK)[0], expected)
    torch.testing.assert_close(torch.func.grad(loss_of)(logits_MBK.detach(), *arguments), expected)
    loss = loss_of(logits_MBK, *arguments)
    for _ in range(2):  # the second backward computes the gradient again
        torch.testing.assert_close(torch.autograd.grad(loss, logits_MBK, retain_graph=True)[0], expected)


@needs_cpp
def test_the_number_of_threads_changes_no_bit():
    logits_MBK, target_B, weights_MM, mix, weight_B = case(3, 50, 1000, dtype=F32)
    results = []
    for threads in (1, 2):
        with harness.threads(threads):
            results.append(public_mimic_loss(logits_MBK, target_B, weights_MM, mix=mix, row_weight_B=weight_B))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


STALE = """
import sys

import torch

sys.modules["fastdhm._C"] = None
library = torch.library.Library("fastdhm", "FRAGMENT")
library.define("mimic_loss(Tensor logits) -> Tensor")  # what an older build has

try:
    import fastdhm.ops.mimic_loss
except ValueError as error:
    print(error)
"""


def test_an_extension_with_an_older_loss_is_refused_in_words():
    result = subprocess.run([sys.executable, "-c", STALE], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("the C++ extension was built from older sources, with another loss: build it")
