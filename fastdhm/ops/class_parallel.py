"""Classifier heads and the mimicking loss over several processes, each with its own classes: for 10^6 and more.

Legend: M branches (index 0 = main), B rows of all processes, K classes of all processes, D features of a branch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo as uncompiled  # torch.compiler.disable loads the compiler at import
from torch.autograd.function import once_differentiable

from fastdhm.errors import UserError
from fastdhm.ops._chunked_mimic_loss import nan_if_wrong, plan
from fastdhm.ops._fused_mimic_loss import grad_dtype, scaled
from fastdhm.ops._head_products import Branch, wide_dtype
from fastdhm.ops._mimic_loss_by_classes import Share, by_classes
from fastdhm.ops._mimic_loss_input import Mix, check_values, main_label, validate_settings
from fastdhm.ops._process_group import Group
from fastdhm.ops.linear_mimic_loss import linear_mimic_loss, validate_all
from fastdhm.ops.mimic_loss import labels_of

__all__ = ("class_parallel_mimic_loss",)


@uncompiled
def class_parallel_mimic_loss(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Sequence[Tensor] | None,
    target_B: Tensor,
    weights_MM: Tensor,
    *,
    group: str,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    mix: Mix | None = None,
    row_weight_B: Tensor | None = None,
    chunk_mib: float | None = None,
    count_correct: bool = False,
) -> tuple[Tensor, ...]:
    """:func:`linear_mimic_loss` of all rows and classes of a group, where each process has some of both (Eq. 1-9).

    A process gives its rows, as in data-parallel training, and the rows of the heads for its classes. The classes are
    numbered in the order of the ranks: with 5 and 4 of them, process 1 has those from 5 to 8. Every process
    computes the logits of all rows for its classes, a chunk at a time, each of them twice. Features and labels are
    sent, each row's maximum and sums of exponentials, and the features' gradients: nothing of the size of the classes.

    All processes must call it together; the backward pass sends nothing. The result is the same in all of them.

    Args:
        features: of each branch, B0 first, ``[own rows, D_m]``; float32, bfloat16, float16 or float64. Get gradients.
            Processes may have different numbers of rows, or none.
        weights: of each branch's head, ``[own classes, D_m]``, at least one class. Get gradients.
        bias: of each head, ``[own classes]``, or None. Get gradients.
        target_B: int64 ``[own rows]``, each in [0, K) or ``ignore_index``: a class of any process.
        weights_MM: as in :func:`linear_mimic_loss`, the same in all processes; so are all settings below.
        group: the name of the group, such as ``torch.distributed.group.WORLD.group_name``. ``""`` is this process
            alone: then it is :func:`linear_mimic_loss`.
        mix: ``(target2_B, share_B)`` of the own rows.
        row_weight_B: weights of the own rows.
        chunk_mib: MiB for a chunk of the logits and what is computed from them, in each process. Default: 192, or a
            32nd of a GPU's memory.

    Returns:
        ``(loss, terms_MM)``, and with ``count_correct`` ``correct_M``: of the rows and classes of all processes.

        Gradients are those of this loss, as one process with all rows and classes has them. Those of the own heads
        are complete: keep the heads out of DistributedDataParallel. Those of ``features`` are complete for the own
        rows, so what lies before them gets its gradient as a sum over the processes. DistributedDataParallel takes
        the mean: multiply there by the number of processes, with ``x.register_hook(lambda grad: grad * processes)``
        for each of ``features``. Gradients are made in forward, there is one backward pass and no second derivative.

        The host waits once, for the numbers of rows and classes; a compiled function has a graph before this and one
        after it. Under autocast, features are sent in its dtype.

    Raises:
        ValueError: as :func:`linear_mimic_loss`; no such group; settings, numbers of branches, widths or dtypes that
            differ between processes. A mistake of one process is an error in all. On a GPU, a wrong label is not read
            and makes the loss NaN.
    """
    if group == "":
        return linear_mimic_loss(
            features, weights, bias, target_B, weights_MM, temperature=temperature, label_smoothing=label_smoothing,
            ignore_index=ignore_index, mix=mix, row_weight_B=row_weight_B, chunk_mib=chunk_mib,
            count_correct=count_correct,
        )  # fmt: skip
    processes, bias = Group(group), [] if bias is None else bias
    try:
        dtype = validate_all(features, weights, bias, target_B, weights_MM, mix, row_weight_B, chunk_mib).dtype
        validate_settings(temperature, label_smoothing, ignore_index)
    except UserError as error:
        raise processes.refuse(error, getattr(target_B, "device", torch.device("cpu"))) from None
    need_grad = [torch.is_grad_enabled() and x.requires_grad for x in (*features, *weights, *bias)]
    M, device = len(features), weights_MM.device
    alike = {
        "number of branches": M,
        "widths of features": [x.shape[1] for x in features],
        "type of the products": dtype,
        "features that need a gradient": need_grad[:M],
        "bias given": len(bias) > 0,
        "mix given": mix is not None,
        "row_weight_B given": row_weight_B is not None,
        "temperature": float(temperature),
        "label_smoothing": float(label_smoothing),
        "ignore_index": ignore_index,
        "chunk_mib": chunk_mib,
        "count_correct": count_correct,
        "weights_MM": weights_MM,
    }
    rows_R, classes_R = zip(*processes.agree((len(target_B), len(weights[0])), alike, device), strict=True)
    B, K = sum(rows_R), sum(classes_R)
    target_B, mix, row_weight_B = _of_all_rows(processes, rows_R, target_B, mix, row_weight_B)
    if device.type == "cpu":
        check_values(features[0].new_zeros(()).expand(M, B, K), target_B, weights_MM, ignore_index, mix, row_weight_B)
    labels, label_weight_B = labels_of(target_B, mix, row_weight_B, ignore_index, torch.float64)
    label_weight_B = nan_if_wrong(labels, label_weight_B, K)
    step = plan((M, B, len(weights[0])), dtype, 0, chunk_mib, False, device).step
    share = Share(sum(classes_R[: processes.rank]), K, processes.sum, processes.maximum)
    main_B = main_label(target_B, mix) if count_correct else None
    settings = (temperature, label_smoothing, any(need_grad), main_B, share)

    def loss_of(branches: Sequence[Branch]) -> tuple[Tensor, Tensor, Tensor]:
        return by_classes(branches, step, weights_MM, labels, label_weight_B, *settings)

    used_M = ((weights_MM != 0) | (weights_MM != 0).T).any(0)

    def compute() -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
        inputs = (*features, *weights, *bias)
        return _with_gradients(loss_of, processes, rows_R, used_M, dtype, need_grad, inputs)

    loss, terms_MM, correct_M = _GradientsOfForward.apply(compute, *features, *weights, *bias)
    return (loss, terms_MM, correct_M.where(used_M, 0)) if count_correct else (loss, terms_MM)


def _of_all_rows(
    processes: Group, rows_R: Sequence[int], target_B: Tensor, mix: Mix | None, row_weight_B: Tensor | None
) -> tuple[Tensor, Mix | None, Tensor | None]:
    """The labels of all processes, in one message: numbers travel as the bits of float64."""
    own = [target_B, *(mix or ()), *(() if row_weight_B is None else (row_weight_B,))]
    bits = [x if x.dtype == torch.int64 else x.detach().double().view(torch.int64) for x in own]
    found = [*processes.rows(torch.stack(bits, 1), rows_R).T.contiguous()]
    row_weight_B = None if row_weight_B is None else found.pop().view(torch.float64)
    return found[0], (found[1], found[2].view(torch.float64)) if mix else None, row_weight_B


def _with_gradients(
    loss_of: Callable[[Sequence[Branch]], tuple[Tensor, Tensor, Tensor]],
    processes: Group,
    rows_R: Sequence[int],
    used_M: Tensor,
    dtype: torch.dtype,
    need_grad: Sequence[bool],
    inputs: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    """What ``loss_of`` finds for the features of all processes, and the gradients that it adds up."""
    M, wide = len(used_M), wide_dtype(dtype)
    features, heads = inputs[:M], inputs[M:]
    own_BL = torch.cat([x.to(dtype).where(used, 0) for x, used in zip(features, used_M, strict=True)], 1)  # not NaN
    x = processes.rows(own_BL, rows_R).split([x.shape[1] for x in features], 1)
    widths = [x.shape[1] if need else 0 for x, need in zip(features, need_grad[:M], strict=True)]
    sum_BL = own_BL.new_empty(sum(rows_R), sum(widths), dtype=wide)
    x_sums = [sum_BD if sum_BD.shape[1] else None for sum_BD in sum_BL.split(widths, 1)]
    sums = [
        x.new_zeros(x.shape, dtype=wide if x.ndim == 1 else grad_dtype(x.dtype)) if need else None
        for x, need in zip(heads, need_grad[M:], strict=True)
    ]
    weights, bias, none = heads[:M], heads[M:], [None] * (2 * M - len(heads))
    branches = [*map(Branch, x, weights, [*bias, *none], x_sums, sums[:M], [*sums[M:], *none])]
    with torch.autocast(used_M.device.type, enabled=False):
        loss, terms_MM, correct_M = loss_of(branches)
    for used, sum_BD in zip(used_M, x_sums, strict=True):
        if sum_BD is not None:
            sum_BD.masked_fill_(~used, 0)  # even if the head is NaN
    if sum(widths):
        x_sums = processes.own_sums(sum_BL, rows_R).split(widths, 1)
    grads = [
        sum_.to(grad_dtype(x.dtype)).contiguous() if need and sum_ is not None else None
        for x, sum_, need in zip(inputs, (*x_sums, *sums), need_grad, strict=True)
    ]
    return loss.to(wide), terms_MM.to(wide), correct_M, grads


class _GradientsOfForward(torch.autograd.Function):
    """The loss, whose gradients are there before the backward pass, which scales them."""

    @staticmethod
    def forward(ctx: Any, compute: Callable, *inputs: Tensor) -> Any:
        *found, ctx.grads = compute()
        ctx.dtypes = [x.dtype for x in inputs]
        ctx.mark_non_differentiable(*found[1:])
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> Any:
        if grad_loss is None:
            return (None,) * (1 + len(ctx.dtypes))
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("class_parallel_mimic_loss has one backward pass: call it again for another one")
        found = (x if x is None else scaled(x, grad_loss).to(dtype) for x, dtype in zip(grads, ctx.dtypes, strict=True))
        return None, *found
