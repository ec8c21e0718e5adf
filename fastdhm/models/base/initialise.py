"""The initial values of convolutions."""

import math
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def init_convolutions(module: M) -> M:
    """Draw every convolution's weights from N(0, 2 / fan-out) (He et al., ICCV 2015), as the released code does.

    A family draws its whole trunk before it makes a branch. So a seed gives the same trunk with any branches, and two
    methods can be compared from the same start. torch counts the fan-out of a grouped convolution over all groups, but
    an input reaches only the outputs of its own group. Returns the module itself.
    """
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.groups > 1:
                conv.weight.data.mul_(math.sqrt(conv.groups))
    return module
