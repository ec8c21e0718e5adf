"""How similar the convolutions of the main branch and of a side branch are (App. H, Figure 4).

Legend: B batch, F filters (output channels) of a layer, C input channels, H height, W width.
"""

import math
from collections import defaultdict

from torch import Tensor, nn

from fastdhm.errors import UserError, unknown
from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.base.trace import probe

FORK = ""  # stands for the fork of the branch among the names of the layers that ran


def layer_pairs(model: BranchedModel, branch: str, size_CHW: tuple[int, int, int]) -> list[tuple[str, str]]:
    """The names of matching 3x3 convolutions, in order: one of B0 behind the fork of ``branch``, and one of the branch.

    The k-th convolution of a shape in B0 matches the k-th convolution of the same shape in the branch. In a ResNet this
    is the same layer of the k-th block of a stage; in a bottleneck block it is the middle layer. Layers without a match
    are left out.

    Raises:
        ValueError: the model does not have the branch, or no layer of the branch matches one of B0.
    """
    if branch not in model.branches:
        raise unknown("branch", branch, model.branches)
    convs = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.groups == 1
    }
    ran = _order(model, branch, [*convs], size_CHW)
    behind = [name for name in ran[ran.index(FORK) :] if name.startswith("trunk.")]
    inside = [name for name in ran if name.startswith(f"branches.{branch}.")]
    by_shape: defaultdict[tuple, list[str]] = defaultdict(list)
    for name in behind:
        by_shape[tuple(convs[name].weight.shape)].append(name)
    pairs = [
        (same.pop(0), name) for name in inside if (same := by_shape[tuple(convs[name].weight.shape)])
    ]  # each layer of B0 is used once, in order
    if not pairs:
        raise UserError(
            f"no 3x3 convolution of {branch} has the same shape as one of B0 behind the fork: choose another branch "
            "(B1 is wider in the paper's networks, and depthwise convolutions are not compared)"
        )
    return pairs


def _order(model: BranchedModel, branch: str, names: list[str], size_CHW: tuple[int, int, int]) -> list[str]:
    """``names`` in the order in which the layers run, with :data:`FORK` among them."""

    def run(network: BranchedModel, images_BCHW: Tensor) -> list[str]:
        ran: list[str] = []
        network.trunk.get_submodule(network.taps[branch]).register_forward_hook(lambda *_: ran.append(FORK))
        for name in names:
            network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        network.eval()(images_BCHW, (branch,))
        return list(dict.fromkeys(ran))

    return probe(model, size_CHW, run)


def kernel_correlation(main_FCHW: Tensor, side_FCHW: Tensor) -> Tensor:
    """The correlations between the filters of two layers, float64 ``[F, F]``: ``[i, j]`` for main's i and side's j.

    Each kernel is reduced to its maximum, ``a[f, c] = max over h, w of weight[f, c, h, w]``, so a layer becomes a
    matrix [F, C]. The matrix is normalised to mean 0 and variance 1 over channels and filters together. Then each
    filter of one layer is correlated (Pearson) with each filter of the other over their C channels. App. H only says
    "normalize them across channels and filters"; correlating filters over channels is our reading.

    A filter with the same value in all channels has correlation 0.
    """
    directions = []
    for weight_FCHW in (main_FCHW, side_FCHW):
        max_FC = weight_FCHW.double().amax((2, 3))
        max_FC = (max_FC - max_FC.mean()) / max_FC.std(correction=0).clamp_min(1e-30)
        centred_FC = max_FC - max_FC.mean(1, keepdim=True)
        directions.append(nn.functional.normalize(centred_FC, dim=1, eps=1e-9))
    return directions[0] @ directions[1].T


def expected_by_chance(channels: int) -> float:
    """The mean ``|r|`` of the correlations of independent normal vectors with ``channels`` values; NaN below three.

    Such an ``r`` has the density ``(1 - r^2)^((C - 4) / 2) / Beta(1/2, (C - 2) / 2)``.
    """
    if channels < 3:
        return math.nan
    half = (channels - 2) / 2
    return math.exp(math.lgamma(half + 0.5) - math.lgamma(0.5) - math.lgamma(half + 1))


def summarize(correlation_FF: Tensor) -> dict[str, Tensor]:
    """Three scalars of a correlation matrix, on its device: the mean ``|r|``, the mean ``r`` and the mean best match.

    The best match of a filter is its largest ``|r|`` with a filter of the other layer. Its mean is over both layers.
    """
    abs_FF = correlation_FF.abs()
    best = (abs_FF.amax(1).mean() + abs_FF.amax(0).mean()) / 2
    return {"mean_abs": abs_FF.mean(), "mean": correlation_FF.mean(), "best_match": best}
