"""What a branch repeats of the trunk: parameters of a forward itself, whole modules, what a block begins with."""

import torch
import torch.nn.functional as F
import torchvision
from attached import check_whole, conv, images, plain
from torch import nn

from fastdhm.models.attach.attach import attach


class Scaled(nn.Module):
    """Parameters and buffers of the forward itself, after the fork, on a map as wide as the fork's, and one activation
    for all."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.scale, self.act, self.fc = nn.Parameter(torch.full((8, 1, 1), 3.0)), nn.ReLU(), nn.Linear(8, 5)
        self.register_buffer("shift", torch.full((1, 8, 1, 1), 0.5))

    def forward(self, x):
        x = self.act(self.conv1(x))
        return self.fc(self.act(self.conv2(x * self.scale - self.shift)).mean((2, 3)))


def test_parameters_of_the_forward_itself_are_copied():
    model = attach(Scaled(), branches=("B1",), input_size=(1, 28, 40), verbose=False)
    told = model.summary.branches["B1"]
    assert (told.width, told.blocks, len(told.kept)) == ("2x as wide", (1,), 1)
    branch = model.branches["B1"]
    own = [parameter for parameter in branch.parameters() if parameter.shape == (8, 1, 1)]
    assert len(own) == 1 and own[0] is not model.trunk.scale
    conv2 = next(module for module in branch.modules() if isinstance(module, nn.Conv2d))
    x = images(2, 8, 14, 20)
    taken = F.relu(x) if told.fork == "conv1" else x
    expected = branch.fc(F.relu(conv2(taken * own[0] - 0.5)).mean((2, 3)))
    torch.testing.assert_close(branch(x), expected)
    check_whole(Scaled(), model, images(3, 1, 28, 40))


class Folding(nn.Module):
    """Cuts the map into patches and joins them again, with sizes of this very batch, around a row of layers."""

    def __init__(self, channels):
        super().__init__()
        self.row = nn.Sequential(nn.Sequential(nn.Conv2d(channels, channels, 1)), nn.Sequential(nn.ReLU()))

    def forward(self, x):
        B, C, H, W = x.shape
        x = self.row(x.reshape(B, C, H * W // 4, 4))
        return x.reshape(B, C, H, W)


def test_a_module_that_reshapes_the_batch_is_repeated_whole():
    network = nn.Sequential(nn.Sequential(*conv(3, 8, 2)), Folding(8), nn.Sequential(*conv(8, 16, 2)), Folding(16))
    network = nn.Sequential(*network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    model = attach(network, branches=("B1",), input_size=(3, 32, 48), verbose=False)
    check_whole(network, model, images(5, 3, 32, 48))


class DroppingFirst(nn.Module):
    """Begins with what gives back the same tensor in evaluation."""

    def __init__(self, before, after):
        super().__init__()
        self.drop, self.conv, self.skip = (
            nn.Dropout(0.1),
            nn.Conv2d(before, after, 3, 2, 1),
            nn.Conv2d(before, after, 1, 2),
        )

    def forward(self, x):
        x = self.drop(x)
        return self.conv(x) + self.skip(x)


def test_a_block_that_begins_with_dropout_is_in_the_branch_whole():
    network = nn.Sequential(DroppingFirst(3, 4), DroppingFirst(4, 8), DroppingFirst(8, 16), nn.AdaptiveAvgPool2d(1))
    network = nn.Sequential(*network, nn.Flatten(), nn.Linear(16, 5))
    model = attach(network, input_size=32, verbose=False)
    assert [branch.fork for branch in model.summary.branches.values()] == ["1", "0"]
    assert [branch.trunk_blocks for branch in model.summary.branches.values()] == [(1,), (1, 1)]
    check_whole(network, model, images(4, 3, 32, 32))


def test_branches_start_with_new_weights_and_statistics():
    torch.manual_seed(0)
    network = plain()
    network(images(4, 3, 32, 32))
    model = attach(network, input_size=32, verbose=False)
    networks = (network, model.trunk)
    trunk = {tensor.data_ptr() for part in networks for tensor in part.state_dict().values()}
    values = {tuple(t.flatten()[:4].tolist()) for t in network.state_dict().values() if t.ndim == 4}
    for name, tensor in model.branches.state_dict().items():
        assert tensor.data_ptr() not in trunk
        assert tensor.ndim < 4 or tuple(tensor.flatten()[:4].tolist()) not in values, name
        assert "running_mean" not in name or not tensor.any()
    assert all(branch.kept == () for branch in model.summary.branches.values())
    model = attach(network, input_size=32, verbose=False, init=lambda m: [p.data.fill_(0.5) for p in m.parameters()])
    assert all((parameter == 0.5).all() for stage in model.branches.values() for parameter in stage.stages.parameters())


def test_layers_without_a_rule_keep_their_values_and_are_named():
    model = attach(torchvision.models.convnext_tiny(), branches=("B2",), verbose=False)
    kept = model.summary.branches["B2"].kept
    assert len(kept) == 5 + 2 and all(name.endswith("layer_scale") for name in kept)
    assert "starts with the trunk's values: stages.0.1.layer_scale" in str(model.summary)
