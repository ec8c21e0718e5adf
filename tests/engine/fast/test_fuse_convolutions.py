"""Which convolutions the fused forward computes by its own ops, and which stay torch's."""

import pytest
import torch
from fused_forward import branched, compare, fused, images, plain_conv
from torch import nn
from torch.nn.utils import prune, spectral_norm

from fastdhm import models
from fastdhm.engine.fast.fuse import Conv2d, Conv3x3, FusedForward, NormAct
from fastdhm.ops import _extension
from fastdhm.ops import conv3x3 as convolutions

pytestmark = [
    pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason())),
    pytest.mark.usefixtures("convolutions_pay"),
]


class Recorded:
    """The op's 3x3 convolution, which keeps the weights that it is given."""

    def __init__(self, monkeypatch):
        self.weights, self.op = [], convolutions.conv3x3
        monkeypatch.setattr(convolutions, "conv3x3", self)

    def __call__(self, x_BCHW, weight_KC33, **options):
        self.weights.append(weight_KC33)
        return self.op(x_BCHW, weight_KC33, **options)

    def saw(self, convs):
        """Whether just these were computed, of those whose channels the op can take."""
        seen = [weight for weight in self.weights if weight.shape[1] > 3]
        return [id(weight) for weight in seen] == [id(conv.weight) for conv in convs]


def test_the_plain_3x3_convolutions_are_the_ops(monkeypatch):
    torch.manual_seed(0)
    model, recorded = models.build("resnet8", 4, ()).double(), Recorded(monkeypatch)
    forward = FusedForward(model)
    forward(images(8))
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.stride == (1, 1)]
    assert len(convs) == 5 and [part.conv for part in fused(forward, Conv3x3)] == convs
    assert recorded.saw(convs[1:])  # of three channels the op knows nothing


SHAPES = {
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "one pixel": {"kernel_size": 1},
    "shortcut": {"kernel_size": 1, "stride": 2},
    "oblong": {"kernel_size": (5, 2), "stride": (1, 2), "padding": (2, 1)},
    "padding": {"kernel_size": 3},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_convolutions_of_any_shape_are_the_ops(options, monkeypatch):
    torch.manual_seed(0)
    shapes, op = [], torch.ops.fastdhm.conv2d
    monkeypatch.setattr(torch.ops.fastdhm, "conv2d", lambda *args: shapes.append(args[1].shape) or op(*args))
    conv = nn.Conv2d(8, 8, **options, bias=False)
    forward = compare(branched(conv), images(9))
    assert conv in [part.conv for part in fused(forward, Conv2d)] and shapes == [conv.weight.shape]


OTHERS = {
    "bias": {},
    "same": {"padding": "same", "bias": False},
    "groups": {"groups": 2, "bias": False},
    "dilation": {"dilation": 2, "bias": False},
    "reflect": {"padding_mode": "reflect", "bias": False},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_other_convolutions_stay(monkeypatch, options):
    torch.manual_seed(0)
    recorded = Recorded(monkeypatch)
    conv = nn.Conv2d(8, 8, 3, **{"padding": 1} | options)
    forward = compare(branched(conv), images(8))
    assert not recorded.weights and fused(forward, NormAct)
    assert conv not in [part.conv for kind in (Conv2d, Conv3x3) for part in fused(forward, kind)]


class Twice(nn.Module):
    """One convolution called twice, the second time with the name of its argument if ``named``."""

    def __init__(self, named=False):
        super().__init__()
        self.conv, self.named = plain_conv(), named

    def forward(self, x):
        return self.conv(input=self.conv(x)) if self.named else self.conv(self.conv(x))


@pytest.mark.parametrize("named", [False, True])
def test_a_convolution_may_be_called_twice(monkeypatch, named):
    torch.manual_seed(0)
    twice, recorded = Twice(named), Recorded(monkeypatch)
    model = branched(twice)
    compare(model, images(8))
    assert recorded.saw([twice.conv] * (1 if named else 2))


def test_a_frozen_convolution_passes_the_gradient_on(monkeypatch):
    torch.manual_seed(0)
    conv, recorded = plain_conv(), Recorded(monkeypatch)
    model = branched(conv)
    conv.weight.requires_grad_(False)
    compare(model, images(8))
    assert recorded.saw([conv]) and model.trunk.conv.weight.grad.abs().sum() > 0 and conv.weight.grad is None


@pytest.mark.parametrize(
    "change", [spectral_norm, lambda conv: prune.l1_unstructured(conv, "weight", 9)], ids=["spectral", "pruned"]
)
def test_a_weight_made_in_a_hook_is_made_at_each_step(change):
    networks = []
    for _ in range(2):  # alike; a pruned one cannot be copied
        torch.manual_seed(0)
        networks.append(models.build("resnet8", 4).double())
        change(networks[-1].trunk.layer1[0].conv1)
    plain, model = networks
    forward = FusedForward(model)
    for network, run in ((plain, plain), (model, forward)):
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            run(images(8)).square().sum().backward()
            optimizer.step()
    assert forward.why_not() is None
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
