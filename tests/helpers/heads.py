"""Features, heads and labels for the losses that compute the logits themselves, and all that such a loss gives.

Legend: M branches, B batch, K classes, D features, of each branch its own number.
"""

import functools

import torch


def case(M, B, K, dtype=torch.float64, seed=0, bias=True):
    """Features, heads and bias of different D, with a D of 1 among them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [1 + (3 * m + seed) % 7 for m in range(M)]
    new = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    features, weights = [new(B, D) for D in sizes], [2 * new(K, D) for D in sizes]
    bias = [new(K) for _ in sizes] if bias else []
    return [[x.to(dtype) for x in values] for values in (features, weights, bias)]


def labels(M, B, K, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target_B, target2_B = torch.randint(K, (2, B), generator=generator)
    share_B, row_weight_B = torch.rand(2, B, generator=generator, dtype=torch.float64)
    share_B[::3], row_weight_B[1::4], target_B[2::5] = 1, 0, -100
    weights_MM = torch.rand(M, M, generator=generator, dtype=torch.float64)
    weights_MM[torch.arange(M * M).view(M, M) % 4 == 3] = 0
    return target_B, weights_MM, {"mix": (target2_B, share_B), "row_weight_B": row_weight_B}


def outcome(function, heads, *args, **options):
    """Loss, terms, and every gradient."""
    features, weights, bias = ([x.detach().clone().requires_grad_() for x in values] for values in heads)
    loss, terms_MM, *correct = function(features, weights, bias or None, *args, **options)
    loss.backward()
    return loss.detach(), (terms_MM, *correct) if correct else terms_MM, [x.grad for x in (*features, *weights, *bias)]
