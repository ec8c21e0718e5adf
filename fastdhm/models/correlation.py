"""How alike the convolutions of the main branch and of a side branch have become (App. H, Figure 4).

Legend: B batch, F filters (output channels) of a layer, C its input channels, H and W those of an image.
"""

import math
from collections import defaultdict

from torch import Tensor, nn

from fastdhm.errors import UserError, unknown
from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.base.trace import probe

FORK = ""  # among the names of layers that run: where the branch leaves the trunk


def layer_pairs(model: BranchedModel, branch: str, size_CHW: tuple[int, int, int]) -> list[tuple[str, str]]:
    """The 3x3 convolutions of B0 behind the fork of ``branch`` and of the branch that correspond, in order, by name.

    Correspond do the k-th of a shape in one and the k-th of that shape in the other: in ResNets the same layer of the
    k-th block of a stage, in bottleneck blocks the middle layer. Layers without a counterpart are left out.

    Raises:
        ValueError: the model does not have the branch, or no layers of the two have a shape in common.
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
    ]  # each of a shape is taken once, in order
    if not pairs:
        raise UserError(
            f"no 3x3 convolution of {branch} has the shape of one of B0 behind its fork (B1 is wider in the paper's "
            "networks, and depthwise convolutions have no channels to compare): take another branch"
        )
    return pairs


def _order(model: BranchedModel, branch: str, names: list[str], size_CHW: tuple[int, int, int]) -> list[str]:
    """``names`` in the order in which they run, and :data:`FORK` among them."""

    def run(network: BranchedModel, images_BCHW: Tensor) -> list[str]:
        ran: list[str] = []
        network.trunk.get_submodule(network.taps[branch]).register_forward_hook(lambda *_: ran.append(FORK))
        for name in names:
            network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        network.eval()(images_BCHW, (branch,))
        return list(dict.fromkeys(ran))

    return probe(model, size_CHW, run)


def kernel_correlation(main_FCHW: Tensor, side_FCHW: Tensor) -> Tensor:
    """The correlation matrix of two layers' filters, float64 ``[F, F]``: ``[i, j]`` is for filter i of main, j of side.

    Of each kernel the maximum is taken, ``a[f, c] = max over h, w of weight[f, c, h, w]``, which makes a layer a matrix
    [F, C]. It is brought to mean 0 and variance 1 over channels and filters together. Two filters are correlated
    (Pearson) over their C channels. App. H says no more than "normalize them across channels and filters": that it is
    filters which are correlated, over channels, is our reading.

    A filter whose channels are all alike has correlation 0.
    """
    directions = []
    for weight_FCHW in (main_FCHW, side_FCHW):
        max_FC = weight_FCHW.double().amax((2, 3))
        max_FC = (max_FC - max_FC.mean()) / max_FC.std(correction=0).clamp_min(1e-30)
        centred_FC = max_FC - max_FC.mean(1, keepdim=True)
        directions.append(nn.functional.normalize(centred_FC, dim=1, eps=1e-9))
    return directions[0] @ directions[1].T


def expected_by_chance(channels: int) -> float:
    """The mean ``|r|`` of the correlations of independent normal vectors of ``channels`` values; NaN below three.

    ``r`` has the density ``(1 - r^2)^((C - 4) / 2) / Beta(1/2, (C - 2) / 2)`` then.
    """
    if channels < 3:
        return math.nan
    half = (channels - 2) / 2
    return math.exp(math.lgamma(half + 0.5) - math.lgamma(0.5) - math.lgamma(half + 1))


def summarize(correlation_FF: Tensor) -> dict[str, float | Tensor]:
    """Of a correlation matrix, as scalars on its device: the mean of ``|r|``, that of ``r``, and the mean over the
    filters of both layers of the ``|r|`` of the filter that is most like each."""
    abs_FF = correlation_FF.abs()
    best = (abs_FF.amax(1).mean() + abs_FF.amax(0).mean()) / 2
    return {"mean_abs": abs_FF.mean(), "mean": correlation_FF.mean(), "best_match": best}
