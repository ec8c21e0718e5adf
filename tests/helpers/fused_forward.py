"""Networks to fuse, and whether one pass is the same by the fused forward and by the model's own."""

import copy

import torch
from torch import nn

from fastdhm import methods, mimic_loss
from fastdhm.engine.fast.fuse import FusedForward
from fastdhm.models import Branch, BranchedModel


def compare(model, image_BCHW, active=None):
    """Assert that one pass, forward and backward, is the same by both, and return the fused one's."""
    model, image_BCHW = (it.to(memory_format=torch.channels_last) for it in (model, image_BCHW))  # as a run has them
    forward, plain = FusedForward(model), copy.deepcopy(model)
    target_B = torch.arange(len(image_BCHW)) % 4
    results = []
    for run in (plain, forward):
        torch.manual_seed(1)
        logits_ABK = run(image_BCHW, active)
        loss, _ = mimic_loss(logits_ABK, target_B, methods.weight_matrix("dhm", len(logits_ABK)))
        loss.backward()
        results.append((logits_ABK.detach(), torch.get_rng_state()))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    for (name, buffer), other in zip(plain.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, msg=lambda m, name=name: f"{name}: {m}")
    for (name, parameter), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    return forward


def fused(forward, kind):
    return [m for graph, _ in forward.traced.values() for m in graph.modules() if isinstance(m, kind)]


def images(side, batch=3):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Trunk(nn.Module):
    """A network with something in its forward."""

    def __init__(self, inside):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.inside = inside

    def forward(self, x):
        return self.fc(self.inside(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def branched(inside):
    branch = Branch([nn.Conv2d(8, 4, 3)], 4, 4)
    return BranchedModel(Trunk(inside), {"B1": branch}, {"B1": "bn"}).double()


def plain_conv():
    return nn.Conv2d(8, 8, 3, padding=1, bias=False)
