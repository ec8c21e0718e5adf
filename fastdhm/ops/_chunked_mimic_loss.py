"""``fastdhm::linear_mimic_loss`` as a torch op: heads and mimicking loss, a chunk of the logits at a time.

Legend: M branches, B batch, K classes, D features, of each branch its own number.

It has two forms:

- By rows: a chunk is all classes of some rows. The fused loss gives the gradient of a few rows at a time, which takes
  their logits' place. A logit takes three products: its own, and two for the gradients of features and head. Each chunk
  reads the heads twice and adds to their gradients, so a chunk of few rows would wait for memory.
- By classes, in plain torch, where too few rows fit or no fused loss is available: a chunk is some classes of all rows.
  A first pass finds the maximum and the sum of exponentials of each row, a second one terms and gradient. A logit takes
  four products.
"""

from collections.abc import Sequence
from itertools import chain, product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from fastdhm.errors import UserError
from fastdhm.ops._fused_mimic_loss import NoSecondDerivative, grad_dtype, scaled
from fastdhm.ops._head_products import Branch, parts, wide_dtype
from fastdhm.ops._mimic_loss_by_classes import NUMBERS, by_classes, is_right
from fastdhm.ops._mimic_loss_input import check_values, main_label
from fastdhm.ops.mimic_loss import labels_of

CHUNK_MIB, GPU_SHARE = 192, 32  # by default: on a CPU, and one part in so many of a GPU's memory
CACHE_MIB = 32  # chunks of classes are no larger on a CPU: each is read some ten times
ROWS = 32  # with fewer in a chunk, the heads' way through memory takes longer than a fourth product
# The fused loss takes an eighth of a chunk's rows at a time, or as many as keep the processor busy if these are more.
FEW, ROWS_OF_A_THREAD, ROWS_OF_A_GPU = 8, 4, 264
CACHED_CLASSES = 4096  # of a head in a product: it is cast and added to while a cache holds it
INPUTS = 13  # of the op, before the tensors that may be left out

# No defaults: torch 2.6 takes an argument that is left out for a missing gradient.
torch.library.define(
    "fastdhm::linear_mimic_loss",
    "(Tensor[] features, Tensor[] weights, Tensor[] bias, Tensor target, Tensor weights_mm, float temperature, "
    "float label_smoothing, int ignore_index, ScalarType dtype, float? chunk_mib, bool fused, bool count, "
    "bool[] need_grad, Tensor? target2, Tensor? share, Tensor? row_weight) "
    "-> (Tensor loss, Tensor terms, Tensor correct, Tensor[] grads)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


class Plan(NamedTuple):
    """The form, the rows or classes of a chunk, and by rows how many of its rows the fused loss takes at a time."""

    by_rows: bool
    step: int
    few: int = 0


def plan(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    sum_bytes: int,
    chunk_mib: float | None,
    fused: bool,
    device: torch.device,
) -> Plan:
    """``sum_bytes``: of wider sums of the heads' gradients, which several chunks of rows need."""
    M, B, K = shape
    if chunk_mib is None and device.type == "cuda":
        chunk_mib = torch.cuda.get_device_properties(device).total_memory / GPU_SHARE / 2**20
    chunk_mib = CHUNK_MIB if chunk_mib is None else chunk_mib
    budget, row_bytes, is_cpu = int(chunk_mib * 2**20), M * K * dtype.itemsize, device.type == "cpu"
    least = ROWS_OF_A_THREAD * torch.get_num_threads() if is_cpu else ROWS_OF_A_GPU
    in_place = grad_dtype(dtype) == dtype  # a wider gradient cannot take the logits' place

    def rows_in(room: int) -> int:
        rows = room // row_bytes
        return max(rows // 2, min(rows * FEW // (FEW + 1), rows - least)) if in_place else rows // 3

    rows = B if rows_in(budget) >= B else rows_in(budget - sum_bytes)
    if fused and rows >= min(B, ROWS):
        step = -(-B // -(-B // max(rows, 1))) if B else 0  # all of a size
        return Plan(True, step, min(step, max(-(-step // FEW), least)) if in_place else step)
    class_bytes = M * max(B, 1) * NUMBERS * wide_dtype(dtype).itemsize
    if class_bytes > budget:
        raise UserError(
            f"chunk_mib is {chunk_mib:g}: one class of {M} x {B} rows takes {class_bytes / 2**20:.2g} MiB, give more"
        )
    if is_cpu:
        budget = min(budget, max(CACHE_MIB * 2**20, 64 * class_bytes))
    classes = budget // class_bytes
    return Plan(False, min(K, classes // 64 * 64 or classes))


@torch.library.impl("fastdhm::linear_mimic_loss", "CompositeExplicitAutograd")
def _linear_mimic_loss(
    features, weights, bias, target_B, weights_MM, temperature, label_smoothing, ignore_index, dtype, chunk_mib, fused,
    count, need_grad, target2_B, share_B, row_weight_B,
):  # fmt: skip
    M, B, K, device = len(features), len(target_B), len(weights[0]), features[0].device
    mix = None if target2_B is None else (target2_B, share_B)
    if device.type == "cpu":
        check_values(features[0].new_zeros(()).expand(M, B, K), target_B, weights_MM, ignore_index, mix, row_weight_B)
    inputs, wide = [*features, *weights, *bias], wide_dtype(dtype)
    narrow = [x for x, need in zip(inputs[M:], need_grad[M:], strict=True) if need and grad_dtype(x.dtype) != wide]
    sum_bytes = sum(x.numel() for x in narrow) * wide.itemsize
    is_by_rows, step, few = plan((M, B, K), dtype, sum_bytes, chunk_mib, fused, device)
    used_M = ((weights_MM != 0) | (weights_MM != 0).T).any(0)
    # each class of a head has one product if there is one chunk of rows, and by classes: it needs no wider sum
    head_dtypes = [wide if is_by_rows and step < B else grad_dtype(w.dtype) for w in weights]
    dtypes = [*[wide] * M, *head_dtypes, *[wide] * len(bias)]
    sums = [
        (x.new_zeros if x.ndim == 1 else x.new_empty)(x.shape, dtype=sum_dtype) if need else None
        for x, sum_dtype, need in zip(inputs, dtypes, need_grad, strict=True)
    ]
    x = [x_BD.to(dtype).where(used, 0) for x_BD, used in zip(features, used_M, strict=True)]  # even if it is NaN
    none = [None] * (M - len(bias))
    branches = list(map(Branch, x, weights, [*bias, *none], sums[:M], sums[M : 2 * M], [*sums[2 * M :], *none]))

    labels, label_weight_B = labels_of(target_B, mix, row_weight_B, ignore_index, torch.float64)
    label_weight_B = nan_if_wrong(labels, label_weight_B, K)
    need, main_B = any(need_grad), main_label(target_B, mix) if count else None
    with torch.autocast(device.type, enabled=False):
        if is_by_rows:
            each_B = (target_B, target2_B, share_B, row_weight_B)
            settings = (temperature, label_smoothing, ignore_index, need)
            found = by_rows(branches, step, few, weights_MM, each_B, label_weight_B, settings, main_B)
        else:
            meaning = (labels, label_weight_B, temperature, label_smoothing)
            found = by_classes(branches, step, weights_MM, *meaning, need, main_B)
    loss, terms_MM, correct_M = found
    correct_M = correct_M.where(used_M, 0)  # the logits of the others are not known
    for used, sum_BD in zip(used_M, sums[:M], strict=True):
        if sum_BD is not None:
            sum_BD.masked_fill_(~used, 0)  # even if the head is NaN
    grads = [
        x.new_empty(0, dtype=grad_dtype(x.dtype)) if sum_ is None else sum_.to(grad_dtype(x.dtype))
        for x, sum_ in zip(inputs, sums, strict=True)
    ]
    return loss.to(wide), terms_MM.to(wide), correct_M, grads


def nan_if_wrong(labels: Sequence[tuple[Tensor, Tensor]], label_weight_B: Tensor, K: int) -> Tensor:
    """The rows' weights, NaN for a label that may not be: only the device sees it, and it makes the loss NaN."""
    is_good_B = (label_weight_B >= 0) & label_weight_B.isfinite()
    for class_B, share_B in labels:
        is_good_B &= (class_B >= 0) & (class_B < K) & (share_B >= 0) & (share_B <= 1)
    return label_weight_B.where(is_good_B | (label_weight_B == 0), torch.nan)


def by_rows(
    branches: Sequence[Branch],
    step: int,
    few: int,
    weights_MM: Tensor,
    each_B: Sequence[Tensor | None],
    label_weight_B: Tensor,
    settings: tuple[float, float, int, bool],
    main_B: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, terms and how many rows are right, ``step`` rows at a time, ``few`` of them in the fused loss."""
    x_BD, weight_KD, need_grad = branches[0].features_BD, branches[0].weight_KD, settings[-1]
    M, B, K = len(branches), len(x_BD), len(weight_KD)
    classes = list(parts(K, CACHED_CLASSES))
    logits_MBK = x_BD.new_empty(M, step, K)
    loss, terms_MM = torch.zeros((), device=x_BD.device, dtype=torch.float64), torch.zeros_like(weights_MM).double()
    correct_M = loss.new_zeros(M)
    for rows in parts(B, step):
        grad_MBK = chunk_MBK = logits_MBK[:, : rows.stop - rows.start]
        for m, part in product(range(M), classes):
            branches[m].logits(chunk_MBK[m, :, part], rows, part)
        if main_B is not None:
            correct_M += is_right(*chunk_MBK.max(2), main_B[rows]).sum(1)
        for some in parts(rows.stop - rows.start, few):
            of_all = slice(rows.start + some.start, rows.start + some.stop)
            share_MM = _share(of_all, M, label_weight_B)
            target_B, *more = (None if x_B is None else x_B[of_all] for x_B in each_B)
            part_loss, part_MM, part_MBK = torch.ops.fastdhm.mimic_loss(
                chunk_MBK[:, some], target_B, weights_MM * share_MM, *settings, *more
            )
            loss, terms_MM = loss + part_loss, terms_MM + share_MM * part_MM
            if few == step:
                grad_MBK = part_MBK
            elif need_grad:
                chunk_MBK[:, some] = part_MBK  # its logits are no longer needed
            del part_MBK  # before the next one is made
        for m, part in product(range(M) if need_grad else (), classes):
            branches[m].backward(grad_MBK[m, :, part], rows, part)
        del grad_MBK
    return loss, terms_MM, correct_M


def _share(rows: slice, M: int, label_weight_B: Tensor) -> Tensor:
    """What turns the means of these rows, and the weights of their terms, into parts of those of all rows."""
    B = len(label_weight_B)
    label_share = label_weight_B[rows].sum() / label_weight_B.sum()
    # 1 if no row is labelled: then the term is 0, and a weight of 0 could make the branch an unused one
    label_share = label_share.where(label_share > 0, 1)
    is_ce_MM = torch.eye(M, dtype=torch.bool, device=label_weight_B.device)
    return label_share.where(is_ce_MM, (rows.stop - rows.start) / B if B else 1.0)


@torch.library.register_fake("fastdhm::linear_mimic_loss")
def _linear_mimic_loss_fake(features, weights, bias, target, weights_mm, _t, _s, _i, dtype, _c, _f, _n, need_grad, *_):
    wide, new = wide_dtype(dtype), features[0].new_empty
    grads = [
        x.new_empty(x.shape if need else (0,), dtype=grad_dtype(x.dtype))
        for x, need in zip((*features, *weights, *bias), need_grad, strict=True)
    ]
    correct_M = new(len(features), dtype=torch.float64)
    return new((), dtype=wide), new(weights_mm.shape, dtype=wide), correct_M, grads


def _setup_context(ctx, inputs, output):
    features, weights, bias, target, weights_MM, *ctx.settings = inputs[:INPUTS]
    ctx.save_for_backward(*features, *weights, *bias, target, weights_MM, *inputs[INPUTS:])
    ctx.counts = (len(features), len(bias))
    ctx.dtypes = [x.dtype for x in (*features, *weights, *bias)]
    ctx.grads = output[3]
    ctx.mark_non_differentiable(*output[1:3], *output[3])
    ctx.set_materialize_grads(False)  # else backward gets zeros as large as the heads


def _backward(ctx, grad_loss, _grad_terms, _grad_correct, _grad_grads):
    """The gradients from forward, scaled in place; a second backward through the same graph computes them again."""
    M, biases = ctx.counts
    if grad_loss is None:
        return ([None] * M, [None] * M, [None] * biases, *(None,) * INPUTS)
    grads, ctx.grads = ctx.grads, None
    if grads is None:
        grads = _again(ctx, M, biases)
    done: list[Tensor | None] = []
    for n, (grad, dtype, need) in enumerate(zip(grads, ctx.dtypes, ctx.settings[-1], strict=True)):
        if need:
            grad = scaled(grad, grad_loss)
            if torch.is_grad_enabled():  # create_graph=True
                grad = NoSecondDerivative.apply(grad, grad_loss, ctx.saved_tensors[n])
        done.append(grad.to(dtype) if need else None)
    return (done[:M], done[M : 2 * M], done[2 * M :], *(None,) * INPUTS)


def _again(ctx, M: int, biases: int) -> list[Tensor]:
    saved = list(ctx.saved_tensors)
    lists = saved[:M], saved[M : 2 * M], saved[2 * M : 2 * M + biases]
    target, weights_MM, *more = saved[2 * M + biases :]
    return torch.ops.fastdhm.linear_mimic_loss(*lists, target, weights_MM, *ctx.settings, *more)[3]


torch.library.register_autograd("fastdhm::linear_mimic_loss", _backward, setup_context=_setup_context)


def linear_mimic_loss(*args) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The op on the features' device, with autograd; arguments as in its schema."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError("the chunked linear_mimic_loss has no form for torch.func: use impl='eager' for it")
    if not torch.compiler.is_compiling() and any(unpack_dual(x).tangent is not None for x in chain(*args[:3])):
        raise RuntimeError("the chunked linear_mimic_loss has no derivative in forward mode: use impl='eager' for it")
    return torch.ops.fastdhm.linear_mimic_loss(*args)
