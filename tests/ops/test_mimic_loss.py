"""The mimicking loss, in every form that runs here, against Eq. 1-9 pair by pair and the closed form of its gradient.

Legend: M branches, B batch, K classes.
"""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastdhm.methods import weight_matrix
from fastdhm.ops import _extension
from fastdhm.ops.mimic_loss import MimicLoss, check_values
from fastdhm.ops.mimic_loss import mimic_loss as public_mimic_loss

SIMDS = ["none", *_extension.require("tests").simds()] if _extension.available() else []
FORMS = ["eager", *(f"cpp-{simd}" for simd in SIMDS)]


@pytest.fixture(params=FORMS)
def mimic_loss(request, monkeypatch):
    """The public function in one form; for C++ also each instruction set that this processor has."""
    impl, _, simd = request.param.partition("-")
    if impl == "eager":
        yield functools.partial(public_mimic_loss, impl=impl)
        return
    module = _extension.require("tests")
    best = module.simd()
    module.set_simd(simd)
    yield functools.partial(public_mimic_loss, impl=impl)
    module.set_simd(best)


def case(M, B, K, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits_MBK = 3 * torch.randn(M, B, K, generator=generator, dtype=torch.float64)
    target_B = torch.randint(K, (B,), generator=generator)
    return logits_MBK.to(dtype), target_B, torch.rand(M, M, generator=generator, dtype=torch.float64)


def by_pairs(logits_MBK, target_B, weights_MM, temperature, smoothing):
    """The paper's formulas, one term after the other."""
    M = len(logits_MBK)
    terms = torch.zeros(M, M, dtype=torch.float64)
    loss = 0
    for p in range(M):
        for q in range(M):
            if p == q:
                term = F.cross_entropy(logits_MBK[p], target_B, label_smoothing=smoothing)
            else:
                teacher = (logits_MBK[p].detach() / temperature).softmax(-1)
                student = (logits_MBK[q] / temperature).log_softmax(-1)
                term = temperature**2 * F.kl_div(student, teacher, reduction="batchmean")
            terms[p, q] = term.detach()
            loss = loss + weights_MM[p, q] * term
    return loss, terms


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    M=st.integers(1, 5), B=st.integers(1, 9), K=st.integers(1, 33), seed=st.integers(0, 999),
    temperature=st.sampled_from([0.5, 1.0, 3.0]), smoothing=st.sampled_from([0.0, 0.1, 0.9]),
)  # fmt: skip
def test_values_and_gradients_are_those_of_the_equations(mimic_loss, M, B, K, seed, temperature, smoothing):
    logits_MBK, target_B, weights_MM = case(M, B, K, seed)
    ours, theirs = (logits_MBK.clone().requires_grad_() for _ in range(2))
    loss, terms_MM = mimic_loss(ours, target_B, weights_MM, temperature=temperature, label_smoothing=smoothing)
    expected_loss, expected_MM = by_pairs(theirs, target_B, weights_MM, temperature, smoothing)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(terms_MM, expected_MM)
    loss.backward(), expected_loss.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradient_is_the_closed_form(mimic_loss):
    logits_MBK, target_B, weights_MM = case(3, 5, 7)
    T = 2.0
    logits_MBK.requires_grad_()
    mimic_loss(logits_MBK, target_B, weights_MM, temperature=T)[0].backward()
    sharp, soft = logits_MBK.detach().softmax(-1), (logits_MBK.detach() / T).softmax(-1)
    for q in range(3):
        mimic = sum(weights_MM[p, q] * (soft[q] - soft[p]) for p in range(3))
        expected = (weights_MM[q, q] * (sharp[q] - F.one_hot(target_B, 7)) + T * mimic) / 5
        torch.testing.assert_close(logits_MBK.grad[q], expected)


def test_gradcheck_with_frozen_teachers(mimic_loss):
    """Numerical gradients see the teachers move too; so each branch is checked as student of constants."""
    logits_MBK, target_B, weights_MM = case(3, 4, 5)
    for q in range(3):
        column_MM = torch.zeros_like(weights_MM)
        column_MM[:, q] = weights_MM[:, q]

        def loss_of(student_BK, q=q, column_MM=column_MM):
            rows = [student_BK if m == q else logits_MBK[m] for m in range(3)]
            return mimic_loss(torch.stack(rows), target_B, column_MM)[0]

        assert torch.autograd.gradcheck(loss_of, logits_MBK[q].clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_low_precision_logits_are_computed_in_float32(mimic_loss, dtype):
    logits_MBK, target_B, weights_MM = case(3, 6, 11, dtype=dtype)
    loss, terms_MM = mimic_loss(logits_MBK, target_B, weights_MM.float())
    exact, _ = mimic_loss(logits_MBK.double(), target_B, weights_MM)
    assert terms_MM.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_any_strides(mimic_loss, layout):
    logits_MBK, target_B, weights_MM = case(3, 8, 10)
    strided = {
        "transposed": logits_MBK.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        "sliced": torch.stack([logits_MBK, logits_MBK], -1)[..., 0],
        "expanded": logits_MBK[:1].expand(3, -1, -1),
    }[layout]
    loss, terms_MM = mimic_loss(strided, target_B, weights_MM)
    expected, expected_MM = mimic_loss(strided.contiguous(), target_B, weights_MM)
    torch.testing.assert_close((loss, terms_MM), (expected, expected_MM))


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
def test_a_branch_without_weights_adds_exactly_nothing(mimic_loss, garbage):
    logits_MBK, target_B, _ = case(3, 4, 5)
    weights_MM = torch.ones(3, 3, dtype=torch.float64)
    weights_MM[1], weights_MM[:, 1] = 0, 0
    broken = logits_MBK.clone()
    broken[1] = garbage
    broken.requires_grad_()
    loss, terms_MM = mimic_loss(broken, target_B, weights_MM)
    loss.backward()
    expected, _ = mimic_loss(logits_MBK[[0, 2]], target_B, torch.ones(2, 2, dtype=torch.float64))
    torch.testing.assert_close(loss, expected)
    assert (terms_MM[1] == 0).all() and (terms_MM[:, 1] == 0).all()
    assert (broken.grad[1] == 0).all() and broken.grad.isfinite().all()


def test_ignored_rows_lose_their_cross_entropy_only(mimic_loss):
    logits_MBK, target_B, weights_MM = case(2, 6, 5)
    target_B[[1, 4]] = -100
    _, terms_MM = mimic_loss(logits_MBK, target_B, weights_MM)
    _, full_MM = mimic_loss(logits_MBK, target_B.clamp(min=0), weights_MM)
    torch.testing.assert_close(terms_MM[0, 0], F.cross_entropy(logits_MBK[0], target_B))
    assert terms_MM[0, 1] == full_MM[0, 1]


def test_a_batch_without_labels_still_mimics(mimic_loss):
    logits_MBK, target_B, weights_MM = case(2, 3, 5)
    loss, terms_MM = mimic_loss(logits_MBK, torch.full_like(target_B, -100), weights_MM)
    assert terms_MM.diag().tolist() == [0, 0]
    assert loss > 0


def log_softmax(row_K, temperature):
    """Of one row, in Python's numbers: NaN throughout where a logit is NaN or +inf, or all are -inf."""
    top = max(row_K)
    if any(z != z for z in row_K) or math.isinf(top):
        return [math.nan] * len(row_K)
    x_K = [(z - top) / temperature for z in row_K]
    return [x - math.log(sum(map(math.exp, x_K))) for x in x_K]


def divergence(teacher_K, student_K):
    """KL of log-probabilities: 0 for what the teacher excludes, infinite where only the student does."""
    return sum(
        0.0 if p == -math.inf else math.inf if q == -math.inf else math.exp(p) * (p - q)
        for p, q in zip(teacher_K, student_K, strict=True)
    )


def by_hand(logits_MBK, weights_MM, temperature, smoothing, targets, others, shares, row_weights):
    """Terms and gradient, number by number, of labels among which -100 is none."""
    M, B, K = logits_MBK.shape
    logits, weights = logits_MBK.tolist(), weights_MM.tolist()
    row_weights = [0 if -100 in pair else w for w, *pair in zip(row_weights, targets, others, strict=True)]
    all_rows = sum(row_weights) or 1
    terms, grad = torch.zeros(M, M, dtype=torch.float64), torch.zeros(M, B, K, dtype=torch.float64)
    used = [any(weights[m]) or any(row[m] for row in weights) for m in range(M)]
    for b, (p, q) in itertools.product(range(B), itertools.product(range(M), repeat=2)):
        if not (used[p] and used[q]):
            continue
        if p != q:
            teacher, student = (log_softmax(logits[m][b], temperature) for m in (p, q))
            terms[p, q] += temperature**2 * divergence(teacher, student) / B
            pull = [temperature * (math.exp(s) - math.exp(t)) / B for s, t in zip(student, teacher, strict=True)]
        elif row_weights[b]:
            log_p, share, w = log_softmax(logits[p][b], 1), shares[b], row_weights[b] / all_rows
            hard = [share * (k == targets[b]) + (1 - share) * (k == others[b]) for k in range(K)]
            label = [(1 - smoothing) * y + smoothing / K for y in hard]
            terms[p, p] += w * sum(-y * z if y else 0 for y, z in zip(label, log_p, strict=True))
            pull = [w * (math.exp(z) - y) for y, z in zip(label, log_p, strict=True)]
        if weights[p][q] and (p != q or row_weights[b]):
            grad[q, b] += weights[p][q] * torch.tensor(pull, dtype=torch.float64)
    return terms, grad


LOGITS = [0.0, 1.0, -3.5, 80.0, -80.0, -200.0, -1000.0, 1e4, 1e30, -1e30, -math.inf, -math.inf, math.inf, math.nan]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@example(data=None, dtype=torch.float32)
def test_any_logits_mean_the_same_in_every_form(mimic_loss, data, dtype):
    """Excluded classes, broken rows, numbers at the ends of what a float holds: value and gradient."""
    if data is None:
        logits_MBK = torch.tensor([[[0.0, -200.0]], [[0.0, -math.inf]]])
        weights_MM, temperature, smoothing = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 1.0, 0
        labels = [0], [0], [1.0], [1.0]
    else:
        M, B, K = (data.draw(st.integers(1, most), name) for name, most in (("M", 3), ("B", 3), ("K", 5)))
        rows = st.lists(st.sampled_from(LOGITS[: data.draw(st.sampled_from([3, 10, 12, 14]))]), min_size=K, max_size=K)
        repeat = data.draw(st.sampled_from([1, 1, 15]), "repeat")  # as long as some vectors
        logits_MBK = torch.tensor([[data.draw(rows) * repeat for _ in range(B)] for _ in range(M)])
        choices = {"targets": [-100, *range(K)], "others": [-100, *range(K), *range(K)]}
        choices |= {"shares": [0.0, 0.25, 1.0], "row weights": [1.0, 2.5, 0.0]}
        labels = [
            data.draw(st.lists(st.sampled_from(some), min_size=B, max_size=B), name) for name, some in choices.items()
        ]
        if data.draw(st.booleans(), "plain"):
            labels[1:] = labels[0], [1.0] * B, [1.0] * B
        weights = st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=M, max_size=M)
        weights_MM = torch.tensor([data.draw(weights) for _ in range(M)])
        temperature = data.draw(st.sampled_from([1.0, 1e-3, 0.5, 4.0, 50.0]), "temperature")
        smoothing = data.draw(st.sampled_from([0.0, 0.1, 0.99]), "smoothing")
    logits_MBK = logits_MBK.to(dtype).requires_grad_()
    target_B, target2_B, share_B, row_weight_B = map(torch.tensor, labels)
    plain = torch.equal(target_B, target2_B) and (row_weight_B == 1).all()
    more = {} if plain else {"mix": (target2_B, share_B), "row_weight_B": row_weight_B}
    options = {"temperature": temperature, "label_smoothing": smoothing} | more
    loss, terms_MM = mimic_loss(logits_MBK, target_B, weights_MM, **options)
    loss.backward()
    terms, grad = by_hand(logits_MBK.detach(), weights_MM, temperature, smoothing, *labels)
    close = {"equal_nan": True, "rtol": 1e-2 if dtype == torch.bfloat16 else 1e-4}
    torch.testing.assert_close(terms_MM.double(), terms, atol=1e-5 * max(1, temperature**2), **close)
    torch.testing.assert_close(logits_MBK.grad.double(), grad, atol=1e-5 * max(1, temperature), **close)
    expected = (weights_MM.double() * terms).where(weights_MM != 0, 0).sum()
    torch.testing.assert_close(loss.double(), expected, atol=1e-4 * max(1, temperature**2), **close)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_stay_finite(mimic_loss, size):
    logits_MBK = torch.tensor([[[size, -size, 0.0]], [[-size, size, 0.0]]], requires_grad=True)
    loss, terms_MM = mimic_loss(logits_MBK, torch.tensor([1]), torch.ones(2, 2))
    loss.backward()
    assert terms_MM.isfinite().all()
    assert logits_MBK.grad.isfinite().all()


def test_a_class_that_all_branches_exclude_costs_nothing(mimic_loss):
    logits_MBK = torch.tensor([[[0.0, 1.0, -torch.inf]], [[1.0, 0.0, -torch.inf]]])
    _, terms_MM = mimic_loss(logits_MBK, torch.tensor([0]), torch.ones(2, 2))
    _, without_MM = mimic_loss(logits_MBK[..., :2], torch.tensor([0]), torch.ones(2, 2))
    torch.testing.assert_close(terms_MM, without_MM)


def test_agreeing_branches_mimic_for_free(mimic_loss):
    logits_MBK, target_B, _ = case(1, 4, 6)
    _, terms_MM = mimic_loss(logits_MBK.expand(3, -1, -1), target_B, weight_matrix("dhm", 3))
    assert (terms_MM - terms_MM.diag().diag()).abs().max() < 1e-15


def test_an_empty_batch_has_no_mean(mimic_loss):
    logits_MBK = torch.zeros(3, 0, 5, requires_grad=True)
    weights_MM = torch.ones(3, 3)
    weights_MM[2], weights_MM[:, 2] = 0, 0
    loss, terms_MM = mimic_loss(logits_MBK, torch.zeros(0, dtype=torch.int64), weights_MM)
    loss.backward()
    assert loss.isnan()
    assert terms_MM[:2, :2].isnan().all() and (terms_MM[2] == 0).all() and (terms_MM[:, 2] == 0).all()
    assert logits_MBK.grad.shape == (3, 0, 5)


def test_no_weights_at_all_give_zero(mimic_loss):
    logits_MBK, target_B, _ = case(2, 3, 4)
    logits_MBK.requires_grad_()
    loss, terms_MM = mimic_loss(logits_MBK, target_B, torch.zeros(2, 2))
    loss.backward()
    assert loss == 0 and (terms_MM == 0).all() and (logits_MBK.grad == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits_MBK": torch.zeros(4, 5)}, r"logits_MBK has shape \(4, 5\)"),
        ({"logits_MBK": torch.zeros(2, 4, 0)}, r"logits_MBK has shape \(2, 4, 0\)"),
        ({"logits_MBK": torch.zeros(2, 4, 5, dtype=torch.int64)}, "logits_MBK is torch.int64.*float32"),
        ({"target_B": torch.zeros(3, dtype=torch.int64)}, r"target_B is torch.int64 \(3,\).*\(4,\)"),
        ({"target_B": torch.zeros(4)}, "target_B is torch.float32.*int64"),
        ({"target_B": torch.tensor([0, 1, 5, 0])}, r"target_B holds 5: needs a class in \[0, 5\)"),
        ({"target_B": torch.tensor([0, -1, 4, 0])}, "target_B holds -1"),
        ({"weights_MM": torch.ones(3, 3)}, r"weights_MM is torch.float32 \(3, 3\).*\(2, 2\)"),
        ({"weights_MM": torch.ones(2, 2, dtype=torch.int64)}, "weights_MM is torch.int64"),
        ({"weights_MM": torch.ones(2, 2, device="meta")}, "weights_MM is on meta and the logits on cpu"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e-7}, "temperature is 1e-07: must be a number from 1e-6 to 1e6"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0: must be a number in \[0, 1\)"),
        ({"weights_MM": torch.tensor([[1.0, 0.0], [-0.5, 1.0]])}, r"weights_MM\[1, 0\] is -0.5: needs a finite"),
        ({"weights_MM": torch.tensor([[1.0, torch.nan], [1.0, 1.0]])}, r"weights_MM\[0, 1\] is nan"),
        ({"logits_MBK": [torch.zeros(4, 5)] * 2}, "logits_MBK is a list: must be a tensor.*torch.stack"),
        ({"target_B": [0, 1, 2, 3]}, "target_B is a list"),
        ({"target_B": torch.zeros(4, dtype=torch.int32)}, r"target_B is torch.int32.*target.long\(\)"),
        ({"weights_MM": None}, "weights_MM is a NoneType"),
        ({"temperature": "2"}, "temperature is '2'"),
        ({"ignore_index": 2.5}, "ignore_index is 2.5"),
        ({"impl": None}, "unknown impl None"),
        ({"impl": "egaer"}, "unknown impl 'egaer'; did you mean 'eager'"),
        ({"impl": "triton"}, "impl is 'triton': it runs on cuda, and the logits are on cpu, use 'auto'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_input_is_named(mimic_loss, changes, message):
    arguments = {
        "logits_MBK": torch.zeros(2, 4, 5),
        "target_B": torch.zeros(4, dtype=torch.int64),
        "weights_MM": torch.ones(2, 2),
    }
    with pytest.raises(ValueError, match=message):
        mimic_loss(**(arguments | changes))


def test_the_module_is_the_function_with_its_settings():
    logits_MBK, target_B, weights_MM = case(3, 4, 5)
    settings = {"temperature": 2.0, "label_smoothing": 0.1, "ignore_index": 1}
    criterion = MimicLoss(weights_MM, **settings)
    expected = public_mimic_loss(logits_MBK, target_B, weights_MM, **settings)
    torch.testing.assert_close(criterion(logits_MBK, target_B), expected)
    assert "temperature=2.0" in repr(criterion)
    assert criterion.state_dict().keys() == {"weights_MM"}


def test_the_module_refuses_its_settings_at_once():
    with pytest.raises(ValueError, match="temperature is -1"):
        MimicLoss(torch.ones(2, 2), temperature=-1)
    with pytest.raises(ValueError, match="unknown impl 'cuda'"):
        MimicLoss(torch.ones(2, 2), impl="cuda")
    with pytest.raises(ValueError, match=r"weights_MM is torch.float32 \(2, 3\)"):
        MimicLoss(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"weights_MM\[0, 0\] is -1"):
        MimicLoss(-torch.ones(2, 2))


def test_values_can_be_checked_anywhere():
    logits_MBK, target_B, weights_MM = case(2, 3, 4)
    check_values(logits_MBK, target_B, weights_MM)
    with pytest.raises(ValueError, match="target_B holds"):
        check_values(logits_MBK, target_B + 7, weights_MM)


def test_vmap_maps_the_reference_over_labels_and_weights_too():
    logits, targets, weights = torch.randn(4, 3, 5, 7), torch.randint(0, 7, (4, 5)), torch.rand(4, 3, 3)

    def loss(*args):
        return public_mimic_loss(*args, impl="eager")[0]

    each = [torch.func.grad(loss)(*args) for args in zip(logits, targets, weights, strict=True)]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(logits, targets, weights), torch.stack(each))
