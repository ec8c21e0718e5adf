"""Activation checkpointing: the same bits as without, from less memory."""

import copy

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from fastdhm import models
from fastdhm.models.base.recompute import checkpoint_activations, find_rows


def trained(model: nn.Module, size: int, dtype: torch.dtype = torch.float32, steps: int = 2) -> list[torch.Tensor]:
    """Logits of each of some steps of SGD, then the gradients of the last, then parameters and buffers."""
    torch.manual_seed(1)
    image_BCHW = torch.randn(4, 3, size, size).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for _ in range(steps):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits = model(image_BCHW)
        seen.append(logits.detach().clone())
        optimizer.zero_grad()
        logits.float().square().mean().backward()
        optimizer.step()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*seen, *grads, *model.state_dict().values(), torch.get_rng_state()]


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arch", "size", "options"),
    [
        ("resnet20", 16, {}),
        ("wrn-16-1", 16, {"dropout": 0.3}),
        ("densenet-bc-22-4", 16, {}),
        ("resnet18", 32, {}),
        ("torchvision:mobilenet_v2", 64, {}),  # its taps lie inside a row; its classifier drops activations
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_that_is_learnt_changes(arch, size, options):
    torch.manual_seed(0)
    plain = models.build(arch, 10, **options)
    recomputed = copy.deepcopy(plain)
    checkpoint_activations(recomputed)
    steps = 2 if size == 16 else 1  # the large ones take a second a step
    assert_same(trained(recomputed, size, steps=steps), trained(plain, size, steps=steps))
    assert not recomputed._features


def test_nor_under_autocast_with_a_frozen_part():
    torch.manual_seed(0)
    plain = models.build("resnet14", 10)
    for parameter in plain.trunk.layer1.parameters():
        parameter.requires_grad_(False)
    recomputed = copy.deepcopy(plain)
    checkpoint_activations(recomputed)
    both = []
    for model in (recomputed, plain):
        model.train().trunk.layer1.eval()  # as an epoch with frozen layers has it
        both.append(trained(model, 16, torch.bfloat16))
    assert_same(*both)


class Counting(nn.Module):
    """Has its state in a buffer that it changes at every call, and computes with it: as spectral norm does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return x + torch.tanh(self.conv(x) * self.calls)


def test_a_recomputation_uses_the_state_of_the_first():
    torch.manual_seed(0)
    plain = nn.Sequential(Counting(), Counting(), Counting(), Counting())
    recomputed = copy.deepcopy(plain)
    checkpoint_activations(recomputed)
    assert_same(trained(recomputed, 8), trained(plain, 8))
    assert plain[0].calls == 2


def test_a_retained_graph_can_run_backward_twice():
    torch.manual_seed(0)
    plain = nn.Sequential(Counting(), nn.BatchNorm2d(3), Counting(), nn.Dropout(0.5), nn.Conv2d(3, 1, 1))
    recomputed = copy.deepcopy(plain)
    checkpoint_activations(recomputed)
    grads = []
    for model in (plain, recomputed):
        torch.manual_seed(1)
        loss = model(torch.ones(2, 3, 8, 8)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()] + list(model.buffers()))
    assert_same(*grads)


def kept_bytes(model: nn.Module, image_BCHW: torch.Tensor) -> int:
    """What is alive, after a forward pass, of what the layers have made."""
    made = {}

    def note(_module, _args, output):
        storage = output.untyped_storage()
        made[StorageWeakRef(storage)] = storage.nbytes()

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if not list(layer.children())]
    logits = model(image_BCHW)  # noqa: F841 - its graph keeps what the backward pass needs
    for hook in hooks:
        hook.remove()
    return sum(size for storage, size in made.items() if not storage.expired())


def test_only_the_inputs_of_groups_are_kept():
    """18 blocks a stage, in groups of 4: of some 90 activations, those that enter 5 groups."""
    image_BCHW = torch.randn(2, 3, 16, 16)
    plain = models.build("resnet110", 10)
    recomputed = copy.deepcopy(plain)
    checkpoint_activations(recomputed)
    assert kept_bytes(recomputed, image_BCHW) < kept_bytes(plain, image_BCHW) / 8


def test_no_gradient_no_checkpoint():
    model = models.build("resnet14", 10).eval()
    image_BCHW = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        before = model(image_BCHW)
        checkpoint_activations(model)
        assert torch.equal(model(image_BCHW), before)


def test_the_stripped_network_is_plain():
    model = models.build("resnet14", 10)
    names = list(model.state_dict())
    checkpoint_activations(model)
    assert list(model.state_dict()) == names
    network = model.strip()
    assert not any("forward" in module.__dict__ for module in network.modules())
    image_BCHW = torch.randn(2, 3, 16, 16)
    assert torch.equal(network.eval()(image_BCHW), model.eval()(image_BCHW)[0])


@pytest.mark.parametrize(
    ("arch", "rows"),
    [
        ("resnet50", ["trunk.layer1", "trunk.layer2", "trunk.layer3", "trunk.layer4",
                      "branches.B1.stages.0", "branches.B2.stages.0", "branches.B2.stages.1"]),
        ("densenet-bc-16-4", ["trunk.layer1", "trunk.layer2", "trunk.layer3",
                              "branches.B1.stages.0", "branches.B2.stages.0", "branches.B2.stages.2"]),
        ("mobilenet", ["trunk.blocks.0", "trunk.blocks.1", "trunk.blocks.2", "trunk.blocks.3", "trunk.blocks.4",
                       "branches.B1.stages.0", "branches.B2.stages.0", "branches.B2.stages.1"]),
        ("torchvision:convnext_tiny", ["trunk.features.1", "trunk.features.3", "trunk.features.5", "trunk.features.7"]),
        ("torchvision:mobilenet_v2", ["trunk.features"]),
        ("torchvision:vgg11_bn", ["trunk.features", "trunk.classifier"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_rows_are_the_stages(arch, rows):
    with torch.device("meta"):
        model = models.build(arch, 10)
    names = {module: name for name, module in model.named_modules()}
    found = [names[row] for row in find_rows(model)]
    assert [name for name in found if not (name.startswith("branches") and ":" in arch)] == rows


def test_an_activation_in_place_never_begins_a_group():
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.Hardswish(inplace=True))]
    torch.manual_seed(0)
    plain = nn.Sequential(*layers)
    recomputed = copy.deepcopy(plain)
    checkpoint_activations(recomputed)
    assert_same(trained(recomputed, 8), trained(plain, 8))


def test_a_block_that_overwrites_its_input_is_refused():
    class Greedy(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mul_(2))

    model = nn.Sequential(nn.Conv2d(3, 3, 1), *(Greedy(nn.Conv2d(3, 3, 1)) for _ in range(4)))
    checkpoint_activations(model)
    with pytest.raises(ValueError, match="Greedy overwrites its input"):
        model(torch.ones(1, 3, 4, 4))


def test_a_network_without_rows_is_refused():
    with pytest.raises(ValueError, match="no part of Linear is an nn.Sequential"):
        checkpoint_activations(nn.Linear(3, 3))


@pytest.mark.slow
def test_compiled_it_computes_the_same():
    """Traced, decomposed and cut into forward and backward, where the compiler decides what is computed again."""
    torch.manual_seed(0)
    plain = models.build("resnet14", 10, ["B2"])
    recomputed = copy.deepcopy(plain)
    checkpoint_activations(recomputed)
    compiled = torch.compile(recomputed, fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
    for one, other in zip(trained(compiled, 16, steps=1), trained(plain, 16, steps=1), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
