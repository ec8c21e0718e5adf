"""The groups of parameters that an optimizer treats alike: decayed or spared, at which share of the learning rate."""

from collections import defaultdict
from typing import Any

from torch import nn

from fastdhm.models.base.recompute import find_rows, has_weights

SHARE = "lr_share"  # of a group: its learning rate over the run's


def make_groups(
    model: nn.Module, weight_decay: float, decay_norm_bias: bool, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """The parameters of ``model`` for torch's optimizers; without ``decay_norm_bias`` only tensors of two dimensions
    and more are decayed.

    With a ``layer_decay`` below 1, a layer that is ``n`` layers before the trunk's classifier has the share
    ``layer_decay ** n`` of the learning rate, see :func:`layers`. Side branches, which are new, have all of it.

    Source: Clark et al., "ELECTRA", 2020, App. A; Bao et al., "BEiT", 2021, for images.
    """
    depths = layers(getattr(model, "trunk", model)) if layer_decay < 1 else {}
    last = max(depths.values(), default=0)
    found: dict[tuple[bool, int], list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        decayed = decay_norm_bias or parameter.ndim > 1
        found[decayed, last - depths.get(parameter, last)].append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay if decayed else 0.0}
        | ({SHARE: layer_decay**above} if layer_decay < 1 else {})
        for (decayed, above), params in sorted(found.items(), key=lambda item: (not item[0][0], item[0][1]))
    ]


def layers(trunk: nn.Module) -> dict[nn.Parameter, int]:
    """The number of each parameter's layer, in the order in which the network holds them, from 0.

    A layer is a block of a row of blocks, as in ResNet's ``layer1``; what stands between two rows, such as the stem or
    the classifier, is one layer.
    """
    blocks: dict[nn.Parameter, nn.Module | None] = {}
    for row in find_rows(trunk):
        block: nn.Module | None = row
        for part in row:
            block = part if has_weights(part) else block  # a norm belongs to the layer before it
            blocks |= dict.fromkeys(part.parameters(), block)
    number, before = -1, None
    depths: dict[nn.Parameter, int] = {}
    for parameter in trunk.parameters():
        own = blocks.get(parameter)
        if number < 0 or own is not before:
            number, before = number + 1, own
        depths[parameter] = number
    return depths
