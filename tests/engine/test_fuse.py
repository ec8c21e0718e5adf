"""The fused forward pass is the model's own: same logits, gradients, statistics and random numbers."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from fastdhm import attach, methods, mimic_loss, models
from fastdhm.engine.fuse import FusedForward, NormAct, _Recomputed
from fastdhm.models import Branch, BranchedModel
from fastdhm.models.recompute import find_rows
from fastdhm.ops import _extension

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))


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


def fused_norms(forward):
    return [m for graph in forward.traced.values() for m in graph.modules() if isinstance(m, NormAct)]


def images(side, batch=3):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("arch", "side"),
    [
        ("resnet8", 13),
        ("wrn-10-1", 12),
        ("densenet-10-4", 16),
        ("densenet-bc-16-4", 16),
        ("resnet18", 40),
        ("mobilenet", 32),
    ],
)
def test_families(arch, side):
    torch.manual_seed(0)
    model = models.build(arch, 4).double()
    forward = compare(model, images(side))
    assert forward.reason is None
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(fused_norms(forward)) == len(norms)


@pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_y_400mf", "densenet121"])
def test_attached_networks(name):
    torch.manual_seed(0)
    model = attach(torchvision.models.get_model(name, num_classes=4), verbose=False).double()
    forward = compare(model, images(64, 2))
    assert forward.reason is None
    assert fused_norms(forward)


def test_a_residual_block_is_two_ops():
    model = models.build("resnet8", 4).double()
    forward = FusedForward(model)
    forward(images(8))
    (graph,) = forward.traced.values()
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    others = [
        node for node in graph.graph.nodes if node.op == "call_function" and "add" in node.name + str(node.target)
    ]
    assert not others
    assert sum(name.startswith("norm_act") for name in called) == sum(
        isinstance(module, nn.BatchNorm2d) for module in model.modules()
    )


def test_sets_of_branches():
    torch.manual_seed(0)
    model = models.build("resnet8", 4).double()
    for active in ((), ("B2",), ("B1", "B2")):
        model.zero_grad()
        assert compare_logits(model, active)
    with pytest.raises(ValueError, match="B7"):
        FusedForward(model)(images(8), ("B7",))


def compare_logits(model, active):
    forward = FusedForward(model)
    state = copy.deepcopy(model.state_dict())
    expected = model(images(8), active)
    model.load_state_dict(state)
    torch.testing.assert_close(forward(images(8), active), expected)
    return forward.reason is None


def test_modes_are_followed():
    """A norm in evaluation mode uses its statistics and leaves them; dropout drops in training only."""
    torch.manual_seed(0)
    model = models.build("wrn-10-1", 4, dropout=0.5).double()
    forward = compare(model, images(8))
    model.eval()
    statistics = copy.deepcopy(dict(model.named_buffers()))
    with torch.no_grad():
        torch.testing.assert_close(forward(images(8)), model(images(8)))
    assert all(torch.equal(statistics[name], buffer) for name, buffer in model.named_buffers())
    model.train()
    model.trunk.layer1.eval()  # as a frozen part
    before = copy.deepcopy(model.trunk.layer1.state_dict())
    model.zero_grad()
    compare(model, images(8))
    assert all(torch.equal(before[name], value) for name, value in model.trunk.layer1.state_dict().items())


class Trunk(nn.Module):
    """A network with something in its forward."""

    def __init__(self, inside):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.inside = inside

    def forward(self, x):
        return self.fc(self.inside(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def branched(inside):
    branch = Branch([nn.Conv2d(4, 4, 3)], 4, 4)
    return BranchedModel(Trunk(inside), {"B1": branch}, {"B1": "bn"}).double()


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (lambda x: x if x.sum() > 0 else -x, "cannot be traced"),
        (lambda x: x * torch.rand(1, dtype=torch.float64), "draws random numbers"),
    ],
    ids=["control-flow", "random"],
)
def test_what_cannot_be_traced_runs_as_it_is(inside, reason):
    torch.manual_seed(0)
    model = branched(inside)
    forward = compare(model, images(8))
    assert reason in forward.reason
    assert reason in forward.describe(("B1",))


def test_a_branch_may_leave_from_a_norm():
    """The hook that taps a module sees it although the tracer does not enter it, and its norm is then not fused with a
    relu that the branch does not see."""
    torch.manual_seed(0)
    forward = compare(branched(nn.Identity()), images(8))
    assert forward.reason is None
    assert [norm.relu for norm in fused_norms(forward)] == [False]


def test_norms_that_the_op_does_not_know_stay():
    torch.manual_seed(0)
    model = models.build("resnet8", 4).double()
    model.trunk.bn1 = nn.BatchNorm2d(16, affine=False).double()
    model.trunk.layer1[0].bn1 = nn.BatchNorm2d(16, momentum=None).double()
    forward = compare(model, images(8))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(fused_norms(forward)) == norms - 2


def test_bfloat16_under_autocast_is_as_near_as_eager():
    torch.manual_seed(0)
    model = models.build("resnet8", 4)
    exact = copy.deepcopy(model).double()(images(16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = copy.deepcopy(model)(images(16).float())
        fused = FusedForward(model)(images(16).float())
    assert (fused - exact).norm() <= 2 * (plain - exact).norm()


@pytest.mark.parametrize(
    ("arch", "side"),
    [("resnet20", 16), ("densenet-bc-22-4", 16), ("torchvision:mobilenet_v2", 64), ("torchvision:convnext_tiny", 64)],
)
def test_activations_computed_again_change_no_bit(arch, side):
    """In the stages' groups norms are fused too, and their statistics move once."""
    torch.manual_seed(0)
    plain = models.build(arch, 4, ["B2"]).to(memory_format=torch.channels_last)
    again = copy.deepcopy(plain)
    models.checkpoint_activations(again)
    seen = []
    for model in (plain, again):
        torch.manual_seed(1)
        forward = FusedForward(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits_ABK = forward(images(side).float())
        logits_ABK.float().square().mean().backward()
        seen.append([logits_ABK.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    torch.testing.assert_close(*seen, rtol=0, atol=0)
    if forward.reason is None:
        (graph,) = forward.traced.values()
        rows = list(find_rows(again))
        assert len([part for part in graph.children() if isinstance(part, _Recomputed)]) > len(rows)
    else:  # stochastic depth is drawn while tracing
        assert arch == "torchvision:convnext_tiny"
