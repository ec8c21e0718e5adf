"""The fused forward pass is the model's own: same logits, gradients, statistics and random numbers."""

import copy
import operator
import random

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import prune, spectral_norm

from fastdhm import attach, methods, mimic_loss, models
from fastdhm.engine.fast.fuse import Conv2d, Conv3x3, FusedForward, NormAct, Shortcut, _Recomputed
from fastdhm.models import Branch, BranchedModel
from fastdhm.models.base.alone import alone
from fastdhm.models.base.recompute import find_rows
from fastdhm.ops import _extension
from fastdhm.ops import conv2d as plain_convolutions
from fastdhm.ops import conv3x3 as convolutions

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))


@pytest.fixture(autouse=True)
def convolutions_pay(monkeypatch):
    """In float64 too, where rounding hides nothing."""
    monkeypatch.setattr(convolutions, "pays", lambda *_: True)
    monkeypatch.setattr(plain_convolutions, "pays", lambda *_: True)


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


@pytest.mark.parametrize(
    ("arch", "side"),
    [
        ("resnet8", 13),
        ("wrn-10-1", 12),
        ("densenet-10-4", 16),
        ("densenet-bc-16-4", 16),
        pytest.param("resnet18", 40, marks=pytest.mark.slow),
        ("mobilenet", 32),
    ],
)
def test_families(arch, side):
    torch.manual_seed(0)
    model = models.build(arch, 4).double()
    forward = compare(model, images(side))
    assert forward.why_not() is None
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(fused(forward, NormAct)) == len(norms)


@pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_y_400mf", "densenet121"])
def test_attached_networks(name):
    torch.manual_seed(0)
    model = attach(torchvision.models.get_model(name, num_classes=4), verbose=False).double()
    forward = compare(model, images(64, 2))
    assert forward.why_not() is None
    assert fused(forward, NormAct)


def test_a_residual_block_is_two_ops_and_its_shortcut_one():
    model = models.build("resnet8", 4).double()
    forward = FusedForward(model)
    forward(images(8))
    ((graph, _),) = forward.traced.values()
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    others = [
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and any(name in node.name + str(node.target) for name in ("add", "pool2d", "pad"))
    ]
    assert not [node for node in others if "adaptive" not in str(node.target)]
    assert len(fused(forward, Shortcut)) == 2 + 1 + 2  # of the trunk, B1 and B2
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
    return forward.why_not(active) is None


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
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.inside = inside

    def forward(self, x):
        return self.fc(self.inside(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def branched(inside):
    branch = Branch([nn.Conv2d(8, 4, 3)], 4, 4)
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
    assert reason in forward.why_not()
    assert forward.describe(("B1",)).startswith("no fused ops (its forward ")


class CalledTwice(nn.Module):
    """A norm whose second call is what its first one is added to."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        first, second = self.bn(x), self.bn(3 * x + 1)
        return F.relu(first + second)


def test_a_norm_that_is_called_twice_moves_its_statistics_in_that_order():
    torch.manual_seed(0)
    model = branched(CalledTwice())
    forward = compare(model, images(8))
    assert all(part.norm is not model.trunk.inside.bn for part in fused(forward, NormAct))


def test_a_branch_may_leave_from_a_norm():
    """The hook that taps a module sees it although the tracer does not enter it, and its norm is then not fused with a
    relu that the branch does not see."""
    torch.manual_seed(0)
    forward = compare(branched(nn.Identity()), images(8))
    assert forward.why_not() is None
    assert [norm.relu for norm in fused(forward, NormAct)] == [False]


def test_norms_that_the_op_does_not_know_stay():
    torch.manual_seed(0)
    model = models.build("resnet8", 4).double()
    model.trunk.bn1 = nn.BatchNorm2d(16, affine=False).double()
    model.trunk.layer1[0].bn1 = nn.BatchNorm2d(16, momentum=None).double()
    forward = compare(model, images(8))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(fused(forward, NormAct)) == norms - 2


def test_bfloat16_under_autocast_is_as_near_as_eager():
    """A convolution by tiles may lose four times what torch's own does (test_conv3x3), so networks of them may too.

    Of one network the ratio is chance: torch's error differs by processor, and ours by 1.7 to 2.6 from seed to seed on
    one. The mean of the logarithms over seeds, twice as much on the processors seen, is not.
    """

    def take(model, forward, image_BCHW):
        logits_ABK = forward(image_BCHW)
        gradients = torch.autograd.grad(logits_ABK.double().logsumexp(-1).sum(), list(model.parameters()))
        return logits_ABK.detach().double(), torch.cat([gradient.double().flatten() for gradient in gradients])

    ratios = []
    for seed in range(8):
        torch.manual_seed(seed)
        model = models.build("resnet8", 4)
        doubled, twin = copy.deepcopy(model).double(), copy.deepcopy(model)
        exact = take(doubled, doubled, images(16))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = take(twin, twin, images(16).float())
            found = take(model, FusedForward(model), images(16).float())
        errors = [[(one - true).norm() for one, true in zip(some, exact, strict=True)] for some in (found, plain)]
        ratios.append(torch.stack(errors[0]) / torch.stack(errors[1]))
    assert (torch.stack(ratios).log().mean(0).exp() <= 4).all()


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
    if forward.why_not() is None:
        ((graph, _),) = forward.traced.values()
        rows = list(find_rows(again))
        assert len([part for part in graph.children() if isinstance(part, _Recomputed)]) > len(rows)
    else:  # stochastic depth is drawn while tracing
        assert arch == "torchvision:convnext_tiny"


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


@pytest.mark.parametrize(
    "inside",
    [
        lambda x: F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, 1))[:, :8],
        lambda x: F.pad(F.avg_pool2d(x, 3, ceil_mode=True, count_include_pad=False), (0, 0, 0, 0, 0, 1))[:, :8],
        lambda x: F.pad(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False), (0, 0, 0, 0, 1, 0))[:, :8],
        lambda x: F.pad(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False), (0, 0, 0, 0, 0, -1)).repeat(
            1, 2, 1, 1
        )[:, :8],
        lambda x: (lambda y: F.pad(y, (0, 0, 0, 0, 0, 1))[:, :8] + y)(
            F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        ),
        lambda x: F.pad(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False), (0, 0, 0, 0, 0, 1), value=1.0)[
            :, 1:
        ],
    ],
    ids=["rounded-down", "by-three", "before", "cut", "pooled-for-others", "ones"],
)
def test_other_pools_stay(inside):
    torch.manual_seed(0)
    forward = compare(branched(inside), images(9))
    assert forward.why_not() is None and not fused(forward, Shortcut)


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


def plain_conv():
    return nn.Conv2d(8, 8, 3, padding=1, bias=False)


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


@pytest.mark.parametrize("part", ["0", "1", "2"], ids=["conv", "norm", "relu"])
def test_hooks_of_a_part_are_called_with_tensors(part):
    """Also those that come after the trace."""
    torch.manual_seed(0)
    model = branched(nn.Sequential(plain_conv(), nn.BatchNorm2d(8), nn.ReLU())).double()
    forward, plain = FusedForward(model), copy.deepcopy(model)
    seen = []
    for network, run in ((model, forward), (plain, plain)):
        run(images(8))
        module, outputs, gradients = network.trunk.inside.get_submodule(part), [], []
        module.register_forward_hook(lambda _, args, y, outputs=outputs: outputs.append(y.detach()) or y + 2 * y**2)
        module.register_full_backward_hook(lambda _, x, y, gradients=gradients: gradients.append(y[0]))
        logits_ABK = run(images(8))
        logits_ABK.square().sum().backward()
        seen.append((outputs, gradients, logits_ABK))
    assert len(seen[0][0]) == len(seen[0][1]) == 1
    torch.testing.assert_close(*seen)


def test_a_hook_around_a_branch_leaves_the_model_as_it_is():
    torch.manual_seed(0)
    model, shapes = models.build("resnet8", 4).double(), []
    model.trunk.register_forward_hook(lambda _, args, output: shapes.append(tuple(output.shape)))
    forward = compare(model, images(8))
    assert "trunk has hooks" in forward.why_not() and shapes == [(3, 4), (3, 4)]


def test_a_forward_of_a_modules_own_is_called():
    torch.manual_seed(0)
    model = models.build("resnet8", 4).double()
    forward = FusedForward(model)
    conv, before = model.trunk.layer1[0].conv1, forward(images(8))
    conv.forward = lambda x: 2 * nn.Conv2d.forward(conv, x)
    model.trunk.layer1[0].bn1.eval()  # in training the norm takes the factor out again
    torch.testing.assert_close(forward(images(8)), model(images(8)))
    assert not torch.equal(forward(images(8)), before)


def test_a_failed_trace_gives_its_random_numbers_back():
    torch.manual_seed(0)
    random.seed(0)

    def inside(x):
        torch.rand(()), random.random()
        return x if x.sum() > 0 else -x

    forward = FusedForward(branched(inside))
    before = torch.get_rng_state(), random.getstate()
    assert "cannot be traced" in forward.why_not()
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_each_set_of_branches_has_its_own_reason():
    model = branched(nn.Identity())
    model.branches["B1"].stages.append(Inside(lambda x: x if x.sum() > 0 else -x))
    forward = FusedForward(model)
    assert forward.describe(("B1",)).startswith("no fused ops (its forward cannot be traced")
    assert forward.describe(()) == "norms and convolutions by fused ops"
    assert forward.why_not(("B1",)) is not None


class Inside(nn.Module):
    """A module that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_without_the_extension_it_says_so(monkeypatch):
    monkeypatch.setattr(_extension, "_module", None)
    monkeypatch.setattr(_extension, "_reason", "it was not built")
    model = models.build("resnet8", 4).double()
    forward = compare(model, images(8))
    assert forward.describe() == "no fused ops (it was not built)"


def test_a_network_without_what_they_know_says_so():
    trunk = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    assert "no norm or convolution" in FusedForward(BranchedModel(trunk, {}, {})).describe(())


def leaf_tapped():
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), plain_conv(), nn.AdaptiveAvgPool2d(1)]
    trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4))
    return BranchedModel(trunk, {"B1": Branch([nn.Conv2d(8, 4, 3)], 4, 4)}, {"B1": "3"})


@pytest.mark.parametrize("only", [False, True], ids=["with-its-trunk", "alone"])
def test_a_branch_may_leave_from_a_pool_and_keeps_nothing(only):
    torch.manual_seed(0)
    model = leaf_tapped()
    model = (alone(model, "B1", (3, 12, 12)) if only else model).double()
    forward = compare(model, images(12))
    assert forward.why_not() is None and not model._features


def test_a_pass_that_fails_keeps_no_features():
    model = branched(nn.Identity())
    forward = FusedForward(model)
    assert forward.why_not() is None
    model._features["bn"] = torch.ones(1)  # as a module leaves that is called as a whole
    with pytest.raises(RuntimeError):
        forward(images(8)[:, :2])
    assert not model._features


def numbered(y):
    size = before = y.size(0)
    size += 1
    return before


SUMS = {
    "plain": (lambda n, y: n + y, True),
    "second": (lambda n, y: y + n, True),
    "in-place": (lambda n, y: n.add_(y), True),
    "in-place-second": (lambda n, y: y.add_(n), False),
    "iadd-second": (lambda n, y: operator.iadd(y, n), False),
    "number": (lambda n, y: n + numbered(y), True),
    "scaled": (lambda n, y: torch.add(n, y, alpha=2), False),
    "size": (lambda n, y: n + y.size(0), True),
}


class Sums(nn.Module):
    """A norm, its sum with another tensor, and whoever else sees that tensor."""

    def __init__(self, add):
        super().__init__()
        self.bn, self.add = nn.BatchNorm2d(8), add

    def forward(self, x):
        y = x * 2
        total = self.add(self.bn(x), y)
        return torch.relu(total) + y


@pytest.mark.parametrize(("add", "expected"), SUMS.values(), ids=SUMS)
def test_sums(add, expected):
    """What another part of the network sees changed is not fused, and a number is added as it is."""
    torch.manual_seed(0)
    forward = compare(branched(Sums(add)), images(8))
    ((graph, _),) = forward.traced.values()
    calls = [node for node in graph.graph.nodes if node.op == "call_module" and node.target.startswith("norm_act")]
    assert any(len(call.args) == 2 for call in calls) == expected


def test_a_residual_is_read_where_it_is_added():
    def add(n, y):
        total = n + y
        y.neg_()
        return total

    torch.manual_seed(0)
    compare(branched(Sums(add)), images(8))
