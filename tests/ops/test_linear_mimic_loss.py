"""Heads and loss as one op: by rows and by classes, whatever the shape, as its eager twin in float64.

Legend: M branches, B batch, K classes, D features, of each branch its own number.
"""

import functools
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from heads import case, labels, outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

import fastdhm
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.engine.evaluate import count_correct
from fastdhm.methods import weight_matrix
from fastdhm.ops import _chunked_mimic_loss, _extension, _head_products
from fastdhm.ops.linear_mimic_loss import linear_mimic_loss, linear_mimic_loss_eager

OP = torch.ops.fastdhm.linear_mimic_loss
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
needs_cpp = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))


@pytest.fixture(params=["rows", "chunks of rows", "classes"])
def form(request, monkeypatch):
    """The chunks: one of all rows, of some 3 rows each, or of some 5 classes each; a way to give ``chunk_mib``."""
    if request.param != "classes" and not _extension.available():
        pytest.skip(str(_extension.reason()))
    if request.param == "chunks of rows":
        monkeypatch.setattr(_chunked_mimic_loss, "ROWS", 1)

    def chunk_mib(M, B, K, dtype=F64):
        size = 8 if dtype == F64 else 4
        if request.param == "classes":
            monkeypatch.setattr(_chunked_mimic_loss, "ROWS", 10**9)
            return 5 * M * max(B, 1) * 6 * size / 2**20 if B * K > 60 else None
        monkeypatch.setattr(_chunked_mimic_loss, "FEW", 2)
        monkeypatch.setattr(_chunked_mimic_loss, "ROWS_OF_A_THREAD", 0)
        return None if request.param == "rows" else 4.5 * M * K * size / 2**20

    chunk_mib.name = request.param
    return chunk_mib


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    M=st.sampled_from([1, 2, 3, 8]), B=st.integers(1, 9), K=st.integers(1, 33), seed=st.integers(0, 99),
    bias=st.booleans(), temperature=st.sampled_from([1.0, 0.5, 3.0]), smoothing=st.sampled_from([0.0, 0.1]),
    mixed=st.booleans(), weighted=st.booleans(), count=st.booleans(),
)  # fmt: skip
def test_it_is_its_eager_twin(form, M, B, K, seed, bias, temperature, smoothing, mixed, weighted, count):
    heads, (target_B, weights_MM, more) = case(M, B, K, seed=seed, bias=bias), labels(M, B, K, seed)
    more = {name: value for name, value in more.items() if {"mix": mixed, "row_weight_B": weighted}[name]}
    options = {"temperature": temperature, "label_smoothing": smoothing, "count_correct": count} | more
    expected = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM, **options)
    ours = outcome(linear_mimic_loss, heads, target_B, weights_MM, **options, chunk_mib=form(M, B, K))
    torch.testing.assert_close(ours, expected)


def test_gradcheck_with_frozen_teachers(form):
    """Numerical gradients see the teachers move too; so each branch is checked as student of constants."""
    (features, weights, bias), (target_B, weights_MM, _) = case(3, 4, 5, seed=2), labels(3, 4, 5)
    for q in range(3):
        column_MM = torch.zeros_like(weights_MM)
        column_MM[:, q] = weights_MM[:, q] + 0.1

        def loss_of(*student, q=q, column_MM=column_MM):
            pairs = zip(student, (features, weights, bias), strict=True)
            heads = ([one if m == q else x for m, x in enumerate(all_)] for one, all_ in pairs)
            return linear_mimic_loss(*heads, target_B, column_MM, temperature=2.0, chunk_mib=form(3, 4, 5))[0]

        student = [x[q].clone().requires_grad_() for x in (features, weights, bias)]
        assert torch.autograd.gradcheck(loss_of, student)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", [(3, 17, 257), (8, 5, 63), (1, 9, 1000)], ids=str)
def test_it_loses_no_more_than_eager(form, dtype, shape):
    """Errors against eager in float64: at most four times those of eager in the same type and a rounding."""
    heads, (target_B, weights_MM, more) = case(*shape, dtype), labels(*shape)
    wide = [[x.double() for x in values] for values in heads]
    exact = outcome(linear_mimic_loss_eager, wide, target_B, weights_MM, **more)
    eager = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM, **more)
    ours = outcome(linear_mimic_loss, heads, target_B, weights_MM, **more, chunk_mib=form(*shape, F32))
    for a, b, truth in zip(*([r[0], r[1], *r[2]] for r in (ours, eager, exact)), strict=True):
        lost, size = (b.double() - truth).abs().max(), truth.abs().max()
        assert (a.double() - truth).abs().max() <= 4 * (lost + torch.finfo(dtype).eps * size)
    assert all(grad.dtype == dtype for grad in ours[2])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_on_a_gpu_it_loses_no_more_than_eager_and_never_waits(form, dtype):
    shape = (3, 17, 257)
    heads = [[x.cuda() for x in values] for values in case(*shape, dtype)]
    target_B, weights_MM, more = labels(*shape)
    given = (target_B.cuda(), weights_MM.cuda())
    more = {"mix": tuple(x.cuda() for x in more["mix"]), "row_weight_B": more["row_weight_B"].cuda()}
    wide = [[x.double() for x in values] for values in heads]
    exact, eager = (outcome(linear_mimic_loss_eager, values, *given, **more) for values in (wide, heads))
    options = more | {"chunk_mib": form(*shape, F32)}
    outcome(linear_mimic_loss, heads, *given, **options)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = outcome(linear_mimic_loss, heads, *given, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b, truth in zip(*([r[0], r[1], *r[2]] for r in (ours, eager, exact)), strict=True):
        lost, size = (b.double() - truth).abs().max(), truth.abs().max()
        assert (a.double() - truth).abs().max() <= 4 * (lost + torch.finfo(dtype).eps * size)


def test_what_is_right_is_so_by_the_rule_of_training(form):
    """Of equal logits the first class counts, of a mixed row the larger share, and NaN is never right."""
    heads, (target_B, _, more) = case(3, 9, 21), labels(3, 9, 21)
    target_B = target_B.clamp(0)
    heads[0][0][:] = 1.0
    heads[1][0][:], heads[2][0][:] = 0.0, 2.0  # all classes of B0 are equal
    heads[0][1][4] = torch.nan
    target_B[[0, 4]] = torch.tensor([0, 4])
    heads[2][1][4] = 100.0
    heads[2][2][7] = torch.inf
    logits_MBK = torch.stack([F.linear(x, w, b) for x, w, b in zip(*heads, strict=True)])
    target2_B, share_B = more["mix"]
    for mix, main_B in ((None, target_B), (more["mix"], torch.where(share_B < 0.5, target2_B, target_B))):
        expected_M = count_correct(logits_MBK, main_B, 1)
        for impl in ("auto", "eager"):
            options = {"mix": mix, "count_correct": True, "impl": impl, "chunk_mib": form(3, 9, 21)}
            found_M = linear_mimic_loss(*heads, target_B, torch.ones(3, 3), **options)[2]
            assert torch.equal(found_M, expected_M) and found_M.dtype == F64
    heads[2][1][:] = -torch.inf
    assert (
        linear_mimic_loss(*heads, target_B * 0, torch.ones(3, 3), count_correct=True, chunk_mib=form(3, 9, 21))[2][1]
        == 0
    )
    alone_M = linear_mimic_loss(*heads, target_B, torch.diag(torch.tensor([1.0, 0, 0])), count_correct=True)[2]
    assert alone_M.tolist() == [float((target_B == 0).sum()), 0, 0]


def test_excluded_classes_are_those_of_eager(form):
    """A bias of -inf excludes a class."""
    heads, (target_B, weights_MM, _) = case(3, 6, 21), labels(3, 6, 21)
    heads[2][0][3], heads[2][1][[3, 5]], heads[2][2][7:] = -torch.inf, -torch.inf, -torch.inf
    _, terms_MM, grads = outcome(linear_mimic_loss, heads, target_B % 3, weights_MM, chunk_mib=form(3, 6, 21))
    _, expected_MM, expected = outcome(linear_mimic_loss_eager, heads, target_B % 3, weights_MM)
    assert terms_MM.isinf().any()
    torch.testing.assert_close((terms_MM, grads), (expected_MM, expected))


@pytest.mark.parametrize("broken", ["features", "weights"])
def test_a_branch_without_weight_adds_nothing_even_if_it_is_nan(form, broken):
    heads, (target_B, weights_MM, _) = case(3, 7, 13), labels(3, 7, 13)
    weights_MM[1], weights_MM[:, 1] = 0, 0
    expected = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM)
    heads[0 if broken == "features" else 1][1][:] = torch.nan
    for function, options in ((linear_mimic_loss, {"chunk_mib": form(3, 7, 13)}), (linear_mimic_loss_eager, {})):
        torch.testing.assert_close(outcome(function, heads, target_B, weights_MM, **options), expected)


def test_nan_in_a_branch_spreads_by_its_weights_only(form):
    heads, (target_B, _, _) = case(3, 7, 13), labels(3, 7, 13)
    heads[0][1][0] = torch.nan
    _, terms_MM, grads = outcome(linear_mimic_loss, heads, target_B, torch.eye(3), chunk_mib=form(3, 7, 13))
    assert all(grads[n].isfinite().all() == (n % 3 != 1) for n in range(9))
    assert terms_MM[0, 0].isfinite() and terms_MM[0, 1].isnan()


def test_rows_without_labels_keep_their_mimicking(form):
    heads, (target_B, weights_MM, _) = case(2, 7, 9), labels(2, 7, 9)
    target_B[:4] = -100  # no label in a whole chunk of rows
    for weights in (weights_MM, torch.eye(2, dtype=F64)):
        for targets in (target_B, torch.full_like(target_B, -100)):
            ours = outcome(linear_mimic_loss, heads, targets, weights, chunk_mib=form(2, 7, 9))
            torch.testing.assert_close(ours, outcome(linear_mimic_loss_eager, heads, targets, weights))


def test_an_empty_batch_has_no_mean(form):
    heads, target_B = case(3, 0, 5, F32), torch.zeros(0, dtype=torch.int64)
    loss, terms_MM, grads = outcome(linear_mimic_loss, heads, target_B, torch.ones(3, 3), chunk_mib=form(3, 0, 5))
    assert loss.isnan() and terms_MM.isnan().all()
    assert all((grad == 0).all() and grad.shape == x.shape for grad, x in zip(grads, chain(*heads), strict=True))


def test_what_needs_no_gradient_costs_no_product(form, monkeypatch):
    (features, weights, bias), (target_B, weights_MM, _) = case(2, 6, 11), labels(2, 6, 11)
    products = []
    add = _head_products._add_product
    monkeypatch.setattr(_head_products, "_add_product", lambda s, *a, **k: (products.append(s.shape), add(s, *a, **k)))
    weights[1].requires_grad_()
    loss, _ = linear_mimic_loss(features, weights, bias, target_B, weights_MM, chunk_mib=form(2, 6, 11))
    assert sum(shape[0] for shape in products) % 11 == 0 and {shape[1] for shape in products} == {weights[1].shape[1]}
    loss.backward()
    expected = outcome(linear_mimic_loss_eager, (features, weights, bias), target_B, weights_MM)[2]
    torch.testing.assert_close(weights[1].grad, expected[3])
    products.clear()
    with torch.no_grad():
        assert not linear_mimic_loss(features, weights, bias, target_B, weights_MM)[0].requires_grad
    assert not products


def test_backward_scales_and_can_run_twice(form):
    heads, (target_B, weights_MM, _) = case(2, 6, 11), labels(2, 6, 11)
    _, _, expected = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM)
    heads = [[x.requires_grad_() for x in values] for values in heads]
    loss, _ = linear_mimic_loss(*heads, target_B, weights_MM, chunk_mib=form(2, 6, 11))
    for _ in range(2):
        grads = torch.autograd.grad(-2.5 * loss, [*chain(*heads)], retain_graph=True)
        torch.testing.assert_close(grads, tuple(-2.5 * grad for grad in expected))
    (grad,) = torch.autograd.grad(loss**2, heads[0][:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative: use impl='eager'"):
        grad.sum().backward()


def test_equal_inputs_give_equal_bits(form):
    heads, (target_B, weights_MM, more) = case(3, 9, 130, F32), labels(3, 9, 130)
    results = []
    for threads in (1, 2, 2):
        with harness.threads(threads):
            results.append(outcome(linear_mimic_loss, heads, target_B, weights_MM, chunk_mib=form(3, 9, 130), **more))
    assert all(torch.equal(a, b) for a, b in zip(results[1][2], results[2][2], strict=True))
    torch.testing.assert_close(results[0], results[1])


def test_autocast(form):
    heads, (target_B, weights_MM, _) = case(3, 9, 4200, F32), labels(3, 9, 4200)  # heads are cast in several parts
    with torch.autocast("cpu", BF16):
        ours = outcome(linear_mimic_loss, heads, target_B, weights_MM, chunk_mib=form(3, 9, 4200, BF16))
        eager = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM)
    assert ours[0].dtype == F32 and all(grad.dtype == F32 for grad in ours[2])
    exact = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM)
    for a, b, truth in zip(*([r[0], r[1], *r[2]] for r in (ours, eager, exact)), strict=True):
        assert (a - truth).abs().max() <= 2 * (b - truth).abs().max() + 1e-3 * truth.abs().max()


@pytest.mark.parametrize("fused", [pytest.param(True, marks=needs_cpp), False])
@pytest.mark.parametrize("dtype", [F32, pytest.param(BF16, marks=pytest.mark.slow)], ids=str)
def test_opcheck(fused, dtype):
    heads, (target_B, weights_MM, _) = case(2, 5, 9, dtype), labels(2, 5, 9)
    settings = (1.0, 0.1, -100, dtype, None, fused, True)
    torch.library.opcheck(OP, (*heads, target_B, weights_MM, *settings, [False] * 6, None, None, None))
    heads = [[x.requires_grad_() for x in values] for values in heads]
    torch.library.opcheck(OP, (*heads, target_B, weights_MM, *settings, [True] * 6, None, None, None))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_into_one_graph_forward_and_backward(backend, request):
    if backend == "inductor":
        request.getfixturevalue("compiler")
    heads, (target_B, weights_MM, _) = case(2, 6, 11, F32), labels(2, 6, 11)

    @torch.compile(fullgraph=True, backend=backend)
    def compiled(features, weights, bias, *args):
        return linear_mimic_loss([2 * x for x in features], weights, bias, *args)

    ours = outcome(compiled, heads, target_B, weights_MM)
    expected = outcome(lambda x, *a: linear_mimic_loss_eager([2 * t for t in x], *a), heads, target_B, weights_MM)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_compiled_step_checks_its_targets_too(form):
    heads, weights_MM = case(2, 6, 11), torch.ones(2, 2)
    compiled = torch.compile(functools.partial(linear_mimic_loss, chunk_mib=form(2, 6, 11)), backend="eager")
    with pytest.raises(ValueError, match="target_B holds 13"):
        compiled(*heads, torch.full((6,), 13), weights_MM)


def test_wrong_labels_that_only_the_device_sees_make_the_loss_nan(form, monkeypatch):
    heads, (target_B, weights_MM, _) = case(2, 6, 61), labels(2, 6, 61)
    monkeypatch.setattr(_chunked_mimic_loss, "check_values", lambda *_: None)
    if form.name != "classes":  # the fused loss on a CPU checks them by itself
        pytest.skip("as on a GPU")
    for wrong in ({"target_B": target_B + 61}, {"row_weight_B": -torch.ones(6)}):
        arguments = {"target_B": target_B.clamp(0), "weights_MM": weights_MM, "chunk_mib": form(2, 6, 61)} | wrong
        assert linear_mimic_loss(*heads, **arguments)[0].isnan()


def test_torch_func_is_refused_in_words():
    (features, weights, _), (target_B, weights_MM, _) = case(1, 3, 4), labels(1, 3, 4)
    with pytest.raises(RuntimeError, match="no form for torch.func: use impl='eager'"):
        torch.func.grad(lambda x: linear_mimic_loss([x], weights, None, target_B, weights_MM)[0])(features[0])


def test_forward_mode_is_refused_in_words():
    (features, weights, _), (target_B, weights_MM, _) = case(1, 3, 4), labels(1, 3, 4)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no derivative in forward mode: use impl='eager'"):
        dual_BD = forward_ad.make_dual(features[0], torch.ones_like(features[0]))
        linear_mimic_loss([dual_BD], weights, None, target_B, weights_MM)


@needs_cpp
@pytest.mark.parametrize(
    ("shape", "chunk_mib", "expected"),
    [
        ((3, 256, 1000), None, (True, 256, 32)),  # all rows fit
        ((3, 256, 100_000), None, (True, 128, 16)),  # two equal chunks, not 149 rows and 107
        ((3, 256, 1_000_000), None, (False, 1792, 0)),  # 32 rows do not fit
        ((3, 0, 10), None, (True, 0, 0)),
        ((1, 4, 10), 1e-4, (False, 1, 0)),
    ],
    ids=str,
)
def test_the_plan_is_within_the_chunk(shape, chunk_mib, expected):
    with harness.threads(2):
        assert _chunked_mimic_loss.plan(shape, F32, 0, chunk_mib, True, torch.device("cpu")) == expected


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("is_by_rows", [pytest.param(True, marks=needs_cpp), False])
def test_memory_holds_inputs_gradients_and_a_chunk(is_by_rows, dtype):
    M, B, K, D, chunk_mib = 3, 128, 20_000, 8, 14.0 if is_by_rows else 4.0
    features, weights = ([torch.randn(n, D, requires_grad=True) for _ in range(M)] for n in (B, K))
    plan = _chunked_mimic_loss.plan((M, B, K), dtype, 0, chunk_mib, True, torch.device("cpu"))
    assert plan.by_rows == is_by_rows and plan.step < (B if is_by_rows else K)

    def run():
        with torch.autocast("cpu", BF16, enabled=dtype == BF16):
            loss, _ = linear_mimic_loss(
                features, weights, None, torch.zeros(B, dtype=torch.int64), torch.ones(M, M), chunk_mib=chunk_mib
            )
        return torch.autograd.grad(loss, (*features, *weights))

    grads = sum(x.numel() * 4 for x in (*features, *weights))
    chunk = M * K * (plan.step + plan.few) * dtype.itemsize if is_by_rows else chunk_mib * 2**20
    whole = 2 * M * B * K * dtype.itemsize
    assert harness.peak_bytes(run, torch.device("cpu")) - grads - chunk <= 0.01 * whole


HEADS = {"features": [torch.zeros(4, 3)] * 2, "weights": [torch.zeros(5, 3)] * 2, "bias": [torch.zeros(5)] * 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": [torch.zeros(4, 3), torch.zeros(3, 3)]}, r"features\[1\] has shape \(3, 3\): must be \(4, 3\)"),
        ({"features": [torch.zeros(4, 3).long()] * 2}, r"features\[0\] is torch.int64: must be a floating point type"),
        ({"features": [torch.zeros(4, 3), torch.zeros(4, 3).half()]}, r"features\[1\] is torch.float16.*autocast"),
        ({"features": torch.zeros(2, 4, 3)}, "features is a Tensor: must be a list"),
        ({"features": [], "weights": [], "bias": None}, "there are 0 features"),
        ({"features": [torch.zeros(4)] * 2}, r"features\[0\] has shape \(4,\)"),
        (
            {"features": [torch.zeros(4, 0)] * 2, "weights": [torch.zeros(5, 0)] * 2},
            r"features\[0\] has shape \(4, 0\)",
        ),
        ({"weights": [torch.zeros(5, 3), torch.zeros(5, 2)]}, r"weights\[1\] has shape \(5, 2\): must be \(5, 3\)"),
        ({"weights": [torch.zeros(5, 3), torch.zeros(6, 3)]}, r"weights\[1\] has shape \(6, 3\): must be \(5, 3\)"),
        ({"weights": [torch.zeros(0, 3)] * 2, "bias": None}, "at least one branch and one class"),
        ({"weights": [torch.zeros(5, 3)]}, "there are 2 features, 1 weights and 2 bias"),
        ({"weights": [torch.zeros(5, 3, device="meta")] * 2}, r"weights\[0\] is on meta and features\[0\] on cpu"),
        ({"bias": [torch.zeros(5), torch.zeros(4)]}, r"bias\[1\] has shape \(4,\): must be \(5,\)"),
        ({"bias": [torch.zeros(5), None]}, "bias is a list: must be a list with a tensor for each branch"),
        ({"target_B": torch.zeros(3).long()}, r"target_B is torch.int64 \(3,\)"),
        ({"target_B": torch.tensor([0, 5, 0, 0])}, r"target_B holds 5: needs a class in \[0, 5\)"),
        ({"target_B": torch.tensor([0, 5, 0, 0]), "impl": "eager"}, "target_B holds 5"),
        ({"weights_MM": torch.ones(3, 3)}, r"weights_MM is torch.float32 \(3, 3\).*\(2, 2\)"),
        ({"weights_MM": torch.tensor([[1.0, -0.5], [1, 1]])}, r"weights_MM\[0, 1\] is -0.5"),
        ({"row_weight_B": -torch.ones(4)}, "row_weight_B holds -1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"chunk_mib": 0}, "chunk_mib is 0: must be a number of MiB above 0"),
        ({"chunk_mib": "1"}, "chunk_mib is '1'"),
        ({"chunk_mib": float("inf")}, "chunk_mib is inf"),
        ({"chunk_mib": 1e-5}, r"chunk_mib is 1e-05: one class of 2 x 4 rows takes 0.00018 MiB, give more"),
        ({"impl": "cup"}, "unknown impl 'cup'"),
        ({"impl": "triton"}, "impl is 'triton': it runs on cuda"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_input_is_named(changes, message):
    arguments = HEADS | {"target_B": torch.zeros(4, dtype=torch.int64), "weights_MM": weight_matrix("dhm", 2)}
    with pytest.raises(ValueError, match=message):
        fastdhm.linear_mimic_loss(**(arguments | changes))
