"""Where branches fork, found or given."""

import pytest
import torchvision
from attached import Shared, check_whole, images, plain
from torch import nn

from fastdhm.models.attach.attach import attach


def test_your_own_branches():
    network = plain()
    branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = attach(network, branches={"mine": ("9", branch)}, input_size=32, verbose=False)
    assert model.branch_names == ("B0", "mine")
    assert "mine forks after 9: your own, 45 parameters" in str(model.summary)
    check_whole(network, model, images(4, 3, 32, 32))


def test_more_branches_and_none():
    assert attach(plain(), branches=("B3", "B1"), input_size=32, verbose=False).branch_names == ("B0", "B1", "B3")
    assert attach(plain(), branches=(), input_size=32, verbose=False).branch_names == ("B0",)


@pytest.mark.parametrize(
    "forks",
    [("encoder.layers.encoder_layer_2", "encoder.layers.encoder_layer_1"), (2, 1), {"B2": 1, "B1": 2}],
    ids=["names", "numbers", "mapping"],
)
def test_a_vit_takes_forks_at_blocks(forks):
    network = torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=5)
    model = attach(network, forks=forks, input_size=32, verbose=False)
    b1, b2 = model.summary.branches.values()
    assert (b1.fork, b2.fork) == ("encoder.layers.encoder_layer_2", "encoder.layers.encoder_layer_1")
    assert (b1.blocks, b2.blocks, b2.trunk_blocks) == ((1,), (1,), (2,))
    assert b1.width.startswith("as wide (not wider: MultiheadAttention")
    check_whole(network, model, images(2, 3, 32, 32))


def test_a_fork_at_a_module_that_runs_twice_moves_up():
    model = attach(Shared(), branches=("B1",), input_size=32, verbose=False)
    assert model.summary.branches["B1"].fork == "stem"
    assert model(images(2, 3, 32, 32)).shape == (2, 2, 5)
