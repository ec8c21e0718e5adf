"""The Triton kernels of the mimicking loss: terms and gradient of rows, their sum, and the scaling of a gradient.

Legend: M branches, B batch, K classes; P teacher, Q student, both of M. BM: M rounded up to a power of two, BK: classes
of a tile. ``m`` and ``k`` are indices of a branch and a class, ``p`` and ``q`` of a teacher and a student.

What the kernels compute is ``mimic_loss_eager`` in fastdhm/ops/mimic_loss.py; mimic_loss.py here launches them.

- A program takes whole rows, one sample of all branches: a tile [BM, BK] whose branches lie in the registers of one
  thread, so comparing branches needs no communication. A longer row is read twice, tile by tile: first for its
  (online) softmax sums, then for terms and gradient.
- Exponentials and memory accesses are linear in M. Only subtractions and multiply-adds in registers are quadratic.
- Instructions limit M = 3, not memory. So up to 4 branches are compared pair by pair, once for both directions, and
  each thread adds its own part of every term until the last row: threads only meet for a row's maximum and its sum of
  exponentials.
- Every program adds the terms of its own rows and stores M x M sums. A second launch, of one program, adds these in a
  fixed order: equal inputs give equal bits on one kind of GPU.
"""

import triton
import triton.language as tl

# Up to IN_THREAD branches lie in the registers of each thread, and with half as many the loop over students is
# unrolled. More branches are divided among the warps, as registers would spill.
IN_THREAD = 8
IN_THREAD_ = tl.constexpr(IN_THREAD)
UNROLL = tl.constexpr(IN_THREAD // 2)


@triton.jit
def mimic_loss_fwd_kernel(
    logits, stride_m, stride_b, stride_k, target, stride_t, ignore_index, target2, stride_t2, share, stride_s,
    row_weight, stride_w, weights, stride_p, stride_q, sums, grad, stride_g, B,
    TEMPERATURE: tl.constexpr, SMOOTHING: tl.constexpr, ALIGN: tl.constexpr, NEED_GRAD: tl.constexpr,
    M: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The rows program_id, program_id + num_programs, ...; ``stride_m`` and ``stride_b`` count ALIGN elements."""
    WIDE: tl.constexpr = sums.dtype.element_ty
    GRAD_ALIGN: tl.constexpr = ALIGN if K % ALIGN == 0 else 1  # of the gradient's rows, which are stored contiguously
    m = tl.arange(0, BM)
    used_M = is_used(m, weights, stride_p, stride_q, M)
    if NEED_GRAD:
        label_weight = weigh_labels(
            target, stride_t, ignore_index, target2, stride_t2, row_weight, stride_w, B, WIDE, max(512, 16 * T)
        )
        ce_scale = 1 / tl.cast(label_weight, WIDE)
        mimic_scale = TEMPERATURE / tl.cast(B, WIDE)
        ce_M = tl.load(weights + m * (stride_p + stride_q), mask=m < M, other=0).to(WIDE) * ce_scale
    sums_PQ = tl.zeros([BM, BM], WIDE)
    lanes_PQT = tl.zeros([BM, BM, T], WIDE)  # each thread's own part of the sums

    for row in range(tl.program_id(0), B, tl.num_programs(0)):
        row = tl.cast(row, tl.int64)
        y = tl.load(target + row * stride_t)
        # the row's weight, 0 without a label; a label or weight that may not be makes the loss NaN
        labelled = tl.where((y >= 0) & (y < K), 1.0, float("nan"))
        if row_weight is not None:
            w = tl.load(row_weight + row * stride_w).to(WIDE)
            labelled *= tl.where((w >= 0) & (w < float("inf")), w, float("nan"))
        if target2 is not None:
            y2, part = tl.load(target2 + row * stride_t2), tl.load(share + row * stride_s).to(WIDE)
            is_good = (part >= 0) & (part <= 1) & (y2 >= 0) & (y2 < K)
            labelled = tl.where(is_good, labelled, float("nan"))
            labelled = tl.where(y2 == ignore_index, 0.0, labelled)
        labelled = tl.where(y == ignore_index, 0.0, labelled)
        rows_M = logits + row * stride_b * ALIGN + m.to(tl.int64) * stride_m * ALIGN

        z = load_tile(rows_M, used_M, stride_k, 0, K, BK).to(WIDE)  # [BM, BK], the whole row if it fits
        if BK < K and BM <= IN_THREAD_:
            max_M, sum_M, soft_sum_M = lane_softmax_sums(z, rows_M, used_M, stride_k, TEMPERATURE, ALIGN, K, BK, T)
        else:
            max_M, sum_M, soft_sum_M = softmax_sums(z, rows_M, used_M, stride_k, TEMPERATURE, K, BK)
        smooth_M = tl.zeros([BM], WIDE)
        for k0 in range(0, K, BK):
            if BK < K:
                z = load_tile(rows_M, used_M, stride_k, k0, K, BK).to(WIDE)
            k = k0 + tl.arange(0, BK)
            x = z - max_M[:, None]
            # probabilities of the cross-entropies, then of the mimicking terms; one exponential if T = 1
            prob = exp(x) * (1 / sum_M)[:, None]
            soft = exp(x * (1 / TEMPERATURE)) * (1 / soft_sum_M)[:, None] if TEMPERATURE != 1 else prob
            log_soft = x * (1 / TEMPERATURE) - tl.log(soft_sum_M)[:, None]
            if SMOOTHING > 0:
                smooth_M += tl.sum(tl.where(k[None, :] < K, tl.log(sum_M)[:, None] - x, 0.0), 1)

            # A term without weight adds nothing to the gradient, even if it is NaN.
            if target2 is None:
                label_K = tl.where(k == y, tl.full([], 1 - SMOOTHING + SMOOTHING / K, WIDE), SMOOTHING / K)
            else:
                label_K = tl.where(k == y, part, 0.0) + tl.where(k == y2, 1 - part, 0.0)
                label_K = (1 - SMOOTHING) * label_K + SMOOTHING / K
            if M <= UNROLL:  # pair by pair: both directions share the differences
                if NEED_GRAD:
                    row_ce_M = (ce_M * labelled)[:, None]
                    grad_MK = row_ce_M * tl.where(row_ce_M != 0, prob - label_K[None, :], 0.0)
                for p in tl.static_range(M):
                    for q in tl.static_range(p + 1, M):
                        soft_P, soft_Q = branch_of(soft, p, BM), branch_of(soft, q, BM)
                        log_P, log_Q = branch_of(log_soft, p, BM), branch_of(log_soft, q, BM)
                        gap = log_P - log_Q
                        # a class that the teacher excludes adds 0; one that only the student excludes adds inf
                        is_in_P, is_in_Q = log_P > float("-inf"), log_Q > float("-inf")
                        far_P = tl.where(is_in_Q, soft_P, 1.0) * tl.where(is_in_P, gap, 0.0)  # not 0 * inf
                        far_Q = tl.where(is_in_P, soft_Q, 1.0) * tl.where(is_in_Q, gap, 0.0)
                        lanes_PQT += at(lane_sums(far_P, ALIGN, T), p, q, BM)
                        lanes_PQT += at(-lane_sums(far_Q, ALIGN, T), q, p, BM)
                        if NEED_GRAD:
                            gap_P = soft_P - soft_Q
                            weight = tl.load(weights + p * stride_p + q * stride_q).to(WIDE) * mimic_scale
                            add = -weight * tl.where(weight != 0, gap_P, 0.0)
                            grad_MK += tl.where((m == q)[:, None], add[None, :], -0.0)
                            weight = tl.load(weights + q * stride_p + p * stride_q).to(WIDE) * mimic_scale
                            add = weight * tl.where(weight != 0, gap_P, 0.0)
                            grad_MK += tl.where((m == p)[:, None], add[None, :], -0.0)
                if NEED_GRAD:
                    out = grad + (m.to(tl.int64) * B + row)[:, None] * stride_g * GRAD_ALIGN + k[None, :]
                    tl.store(out, grad_MK.to(grad.dtype.element_ty), mask=(m < M)[:, None] & (k < K)[None, :])
            else:
                for q in tl.range(0, M, loop_unroll_factor=1):
                    soft_K, log_soft_K = branch_of(soft, q, BM), branch_of(log_soft, q, BM)
                    gap = tl.where(log_soft > float("-inf"), log_soft - log_soft_K[None, :], 0.0)
                    summand = tl.where(gap == float("inf"), gap, soft * gap)  # as above
                    summand = tl.where((m != q)[:, None], summand, 0.0)  # a branch does not mimic itself
                    sums_PQ += tl.where(m[None, :] == q, tl.sum(summand, 1)[:, None], 0.0)
                    if NEED_GRAD:
                        weight_P = tl.load(weights + m * stride_p + q * stride_q, mask=m < M, other=0).to(WIDE)
                        weight_P = weight_P * mimic_scale
                        mimic = weight_P[:, None] * (soft_K[None, :] - soft)
                        grad_K = tl.sum(tl.where(((m != q) & (weight_P != 0))[:, None], mimic, -0.0), 0)
                        ce_weight = tl.load(weights + q * (stride_p + stride_q)).to(WIDE) * ce_scale * labelled
                        ce_K = branch_of(prob, q, BM) - label_K
                        grad_K += ce_weight * tl.where(ce_weight != 0, ce_K, 0.0)
                        out = grad + (tl.cast(q, tl.int64) * B + row) * stride_g * GRAD_ALIGN + k0
                        tl.store(out + tl.arange(0, BK), grad_K.to(grad.dtype.element_ty), mask=k < K)

        x_y_M = load_label(rows_M, used_M, stride_k, y, K).to(WIDE) - max_M
        if target2 is not None:
            x_y2_M = load_label(rows_M, used_M, stride_k, y2, K).to(WIDE) - max_M
            x_y_M = tl.where(part != 0, part * x_y_M, 0.0) + tl.where(part != 1, (1 - part) * x_y2_M, 0.0)
        term_M = (1 - SMOOTHING) * (tl.log(sum_M) - x_y_M) + SMOOTHING / K * smooth_M
        term_M = tl.where(labelled == 0, 0.0, labelled * term_M)
        sums_PQ += tl.where(m[:, None] == m[None, :], term_M[:, None], 0.0)

    if M <= UNROLL:
        sums_PQ += tl.sum(lanes_PQT, 2)
    tl.store(sums + tl.program_id(0) * BM * BM + m[:, None] * BM + m[None, :], sums_PQ)


@triton.jit
def exp(x):
    """exp(x); in float32 one instruction and a product, with 0 for subnormal results."""
    return tl.exp(x) if x.dtype == tl.float64 else tl.exp2(x * 1.4426950408889634)


@triton.jit
def lanes(tile_K, ALIGN: tl.constexpr, T: tl.constexpr):
    """[..., BK] as [..., rounds, T, ALIGN]: thread t of T holds the elements at t, as it reads ALIGN at a time."""
    BK: tl.constexpr = tile_K.shape[len(tile_K.shape) - 1]
    if len(tile_K.shape) == 1:
        return tl.reshape(tile_K, [BK // (T * ALIGN), T, ALIGN])
    else:
        return tl.reshape(tile_K, [tile_K.shape[0], BK // (T * ALIGN), T, ALIGN])


@triton.jit
def lane_sums(tile_K, ALIGN: tl.constexpr, T: tl.constexpr):
    """The part of a row's sum that each thread adds on its own, [T]."""
    return tl.sum(tl.sum(lanes(tile_K, ALIGN, T), 2), 0)


@triton.jit
def at(lane_T, p: tl.constexpr, q: tl.constexpr, BM: tl.constexpr):
    """[BM, BM, T] with ``lane_T`` at (p, q) and -0.0 elsewhere; adding -0.0 costs no operation."""
    m = tl.arange(0, BM)
    here = (m == p)[:, None, None] & (m == q)[None, :, None]
    return tl.where(here, lane_T[None, None, :], -0.0)


@triton.jit
def lane_softmax_sums(
    z, rows_M, used_M, stride_k, TEMPERATURE: tl.constexpr, ALIGN: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """:func:`softmax_sums` of a row of several tiles, where threads meet once per row, not once per tile."""
    LOWEST: tl.constexpr = -1.7976931348623157e308 if z.dtype == tl.float64 else -3.4028234663852886e38
    max_MT = tl.zeros([rows_M.shape[0], T], z.dtype) + LOWEST
    sum_MT = tl.zeros([rows_M.shape[0], T], z.dtype)
    soft_sum_MT = tl.zeros([rows_M.shape[0], T], z.dtype)
    for k0 in range(0, K, BK):
        if k0 > 0:
            z = load_tile(rows_M, used_M, stride_k, k0, K, BK).to(z.dtype)
        z_MRTA = lanes(z, ALIGN, T)
        old_MT, max_MT = max_MT, tl.maximum(tl.max(tl.max(z_MRTA, 3), 1), max_MT)
        x_MRTA = z_MRTA - max_MT[:, None, :, None]
        sum_MT = sum_MT * exp(old_MT - max_MT) + tl.sum(tl.sum(exp(x_MRTA), 3), 1)
        if TEMPERATURE != 1:
            soft_sum_MT = soft_sum_MT * exp((old_MT - max_MT) * (1 / TEMPERATURE))
            soft_sum_MT += tl.sum(tl.sum(exp(x_MRTA * (1 / TEMPERATURE)), 3), 1)
    max_M = tl.max(max_MT, 1)
    x_MT = max_MT - max_M[:, None]
    sum_M = tl.sum(sum_MT * exp(x_MT), 1)
    soft_sum_M = tl.sum(soft_sum_MT * exp(x_MT * (1 / TEMPERATURE)), 1) if TEMPERATURE != 1 else sum_M
    return max_M, sum_M, soft_sum_M


@triton.jit
def load_tile(rows_M, used_M, stride_k, k0, K: tl.constexpr, BK: tl.constexpr):
    """Classes from k0 on of a row, [BM, BK]. Unused branches are not read and are 0; classes past K are -inf."""
    stride_k = tl.cast(stride_k, tl.int64)
    k = tl.arange(0, BK)
    return tl.load(
        (rows_M + k0 * stride_k)[:, None] + k[None, :] * stride_k,
        mask=used_M[:, None] & (k < K - k0)[None, :],
        other=tl.where(k < K - k0, 0.0, float("-inf"))[None, :],
    )


@triton.jit
def load_label(rows_M, used_M, stride_k, y, K: tl.constexpr):
    """The logits of class ``y``, or of the class next to one out of range."""
    return tl.load(rows_M + tl.minimum(tl.maximum(y, 0), K - 1) * stride_k, mask=used_M, other=0)


@triton.jit
def softmax_sums(z, rows_M, used_M, stride_k, TEMPERATURE: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
    """A row's maxima, sums of exp(z - max), and sums of exp((z - max) / T), [BM] each; ``z`` is its first tile."""
    # finite, so that a tile of -inf does not give NaN
    LOWEST: tl.constexpr = -1.7976931348623157e308 if z.dtype == tl.float64 else -3.4028234663852886e38
    max_M = tl.maximum(tl.max(z, 1), LOWEST)
    x = z - max_M[:, None]
    sum_M = tl.sum(exp(x), 1)
    soft_sum_M = tl.sum(exp(x * (1 / TEMPERATURE)), 1) if TEMPERATURE != 1 else sum_M
    for k0 in range(BK, K, BK):
        z = load_tile(rows_M, used_M, stride_k, k0, K, BK).to(z.dtype)
        old_M, max_M = max_M, tl.maximum(tl.max(z, 1), max_M)
        x = z - max_M[:, None]
        sum_M = sum_M * exp(old_M - max_M) + tl.sum(exp(x), 1)
        if TEMPERATURE != 1:
            soft_sum_M = soft_sum_M * exp((old_M - max_M) * (1 / TEMPERATURE))
            soft_sum_M += tl.sum(exp(x * (1 / TEMPERATURE)), 1)
        else:
            soft_sum_M = sum_M
    return max_M, sum_M, soft_sum_M


@triton.jit
def branch_of(tile, branch, BM: tl.constexpr):
    """Row ``branch`` of a tile [BM, BK]. It only selects registers: adding -0.0 (unlike 0.0) costs no operation."""
    return tl.sum(tl.where((tl.arange(0, BM) == branch)[:, None], tile, -0.0), 0)


@triton.jit
def is_used(branch, weights, stride_p, stride_q, M: tl.constexpr):
    """Whether a branch has a weight, as teacher or as student; False past M."""
    used = branch < 0
    for other in tl.static_range(M):
        used |= tl.load(weights + branch * stride_p + other * stride_q, mask=branch < M, other=0) != 0
        used |= tl.load(weights + other * stride_p + branch * stride_q, mask=branch < M, other=0) != 0
    return used


@triton.jit
def weigh_labels(
    target, stride_t, ignore_index, target2, stride_t2, row_weight, stride_w, B,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The divisor of the cross-entropies: the weight of all rows with a label, 1 if that is 0; 0 for an empty batch."""
    total = tl.zeros([BLOCK], tl.int32 if row_weight is None else WIDE)
    for first in range(0, B, BLOCK):
        b = first + tl.arange(0, BLOCK)
        y = tl.load(target + b.to(tl.int64) * stride_t, mask=b < B, other=ignore_index)
        labelled = y != ignore_index
        if target2 is not None:
            y2 = tl.load(target2 + b.to(tl.int64) * stride_t2, mask=b < B, other=ignore_index)
            labelled &= y2 != ignore_index
        if row_weight is None:
            total += labelled.to(tl.int32)
        else:
            total += tl.load(row_weight + b.to(tl.int64) * stride_w, mask=labelled, other=0).to(WIDE)
    if row_weight is None:
        return tl.minimum(tl.maximum(tl.sum(total, 0), 1), B)
    else:
        weight = tl.sum(total, 0)
        return tl.where(weight == 0, tl.minimum(1, B).to(WIDE), weight)


@triton.jit
def mimic_loss_sum_kernel(
    sums, programs, target, stride_t, ignore_index, target2, stride_t2, share, stride_s, row_weight, stride_w,
    weights, stride_p, stride_q, loss, terms, B,
    TEMPERATURE: tl.constexpr, M: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Terms and loss from the sums of all programs, in a fixed order."""
    WIDE: tl.constexpr = sums.dtype.element_ty
    BLOCK: tl.constexpr = max(1, 2048 // (BM * BM))
    entry = tl.arange(0, BM * BM)
    p, q = entry // BM, entry % BM
    parts = tl.zeros([BLOCK, BM * BM], WIDE)  # reduced once, so that loads do not wait for a reduction
    for first in range(0, programs, BLOCK):
        program = first + tl.arange(0, BLOCK)[:, None]
        parts += tl.load(sums + program * BM * BM + entry[None, :], mask=program < programs, other=0)
    total = tl.sum(parts, 0)
    label_weight = weigh_labels(target, stride_t, ignore_index, target2, stride_t2, row_weight, stride_w, B, WIDE, 2048)
    mean = tl.where(p == q, total / label_weight, TEMPERATURE * TEMPERATURE * total / B)
    used = is_used(p, weights, stride_p, stride_q, M) & is_used(q, weights, stride_p, stride_q, M)
    term = tl.where(used, mean, 0.0)
    inside = (p < M) & (q < M)
    weight = tl.load(weights + p * stride_p + q * stride_q, mask=inside, other=0).to(WIDE)
    tl.store(terms + p * M + q, term, mask=inside)
    # a weight of zero switches its term off, even an infinite one
    tl.store(loss, tl.sum(tl.where(weight != 0, weight * term, 0.0), 0))


@triton.jit
def scale_kernel(grad, factor, numel, BLOCK: tl.constexpr):
    """Multiply ``grad`` by ``factor`` in place; a factor of 1 returns at once."""
    scale = tl.load(factor)
    if scale != 1:
        for first in range(tl.program_id(0).to(tl.int64) * BLOCK, numel, tl.num_programs(0) * BLOCK):
            offset = first + tl.arange(0, BLOCK)
            value = tl.load(grad + offset, mask=offset < numel)
            tl.store(grad + offset, (value.to(scale.dtype) * scale).to(grad.dtype.element_ty), mask=offset < numel)
