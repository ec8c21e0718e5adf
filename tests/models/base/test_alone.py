"""A branch as a network of its own: the trunk up to the fork, then the branch, and nothing else."""

import pytest
import torch
from torch import nn

from fastdhm import models

FAMILIES = ["resnet8", "resnet18", "densenet-bc-10-4", "wrn-10-1", "mobilenet", "torchvision:mobilenet_v3_small"]


@pytest.fixture
def image_BCHW():
    return torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def pair(arch: str, branch: str) -> tuple[models.BranchedModel, models.BranchedModel]:
    """The branch in its whole network and alone, with the same weights."""
    torch.manual_seed(0)
    whole, alone = models.build(arch, 10, (branch,)), models.build_alone(arch, 10, branch)
    state = {name.replace(f"branches.{branch}.", "trunk.branch."): value for name, value in whole.state_dict().items()}
    state |= {name.replace("trunk.", "trunk.trunk.", 1): value for name, value in whole.state_dict().items()}
    alone.load_state_dict({name: state[name] for name in alone.state_dict()})
    return whole, alone


@pytest.mark.parametrize("branch", ["B1", "B2"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_a_branch_alone_gives_the_same_logits_as_in_the_whole_network(arch, branch, image_BCHW):
    whole, alone = (model.eval() for model in pair(arch, branch))
    assert alone.branch_names == (branch,)
    assert torch.equal(alone(image_BCHW)[0], whole(image_BCHW)[1])
    plain = alone.strip()
    assert isinstance(plain, models.AloneBranch) and type(plain.trunk) is type(whole.trunk)
    assert torch.equal(plain(image_BCHW), whole(image_BCHW)[1])
    assert next(plain.parameters()).data_ptr() != next(alone.parameters()).data_ptr()


def test_it_has_no_weights_behind_the_fork_and_learns_all_it_has(image_BCHW):
    _, alone = pair("resnet8", "B2")
    names = {name.split(".")[2] for name in alone.state_dict() if name.startswith("trunk.trunk.")}
    assert names == {"conv1", "bn1", "layer1"}
    alone(image_BCHW).sum().backward()
    assert all(parameter.grad is not None for parameter in alone.parameters())


def test_the_main_branch_alone_is_the_plain_network():
    assert models.build_alone("resnet8", 10, "B0").branch_names == ("B0",)
    torch.manual_seed(3)
    plain = models.build("resnet8", 10, ()).state_dict()
    torch.manual_seed(3)
    torch.testing.assert_close(models.build_alone("resnet8", 10, "B0").state_dict(), plain, rtol=0, atol=0)


def test_a_forward_that_is_no_chain_is_left_at_the_fork(image_BCHW):
    """Layers named in any order, looked up before they run, one of them used without being called."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.late = nn.Linear(6, 5), nn.Conv2d(4, 6, 3)
            self.early, self.mixed = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())

        def forward(self, x):
            late = self.late
            x = nn.functional.conv2d(x, self.early.weight) + self.early(x)
            return self.head(late(self.mixed(x)).mean((2, 3)))

    branch = models.Branch([nn.Identity()], 4, 5)
    model = models.BranchedModel(Odd(), {"B1": branch}, {"B1": "mixed"})
    expected = model(image_BCHW)[1]
    alone = models.alone(model, "B1", (3, 40, 40))
    assert torch.equal(alone(image_BCHW)[0], expected)
    assert not any("late" in name or "head" in name for name in alone.state_dict())


@pytest.mark.parametrize("branch", ["B9", "B3", "b1"])
def test_a_branch_that_the_network_does_not_have_is_named(branch):
    with pytest.raises(ValueError, match=f"'{branch}'.*known: B1, B2"):
        models.build_alone("resnet8", 10, branch)


@pytest.mark.slow
def test_it_compiles_into_one_graph(image_BCHW):
    _, alone = pair("resnet8", "B2")
    captured = torch.compile(alone, fullgraph=True, backend="eager")
    assert torch.equal(captured(image_BCHW), alone(image_BCHW))


@pytest.mark.parametrize("arch", ["resnet20", pytest.param("torchvision:mobilenet_v3_small", marks=pytest.mark.slow)])
def test_its_activations_can_be_computed_again(arch, image_BCHW):
    """In the second network the fork lies in the middle of a row of blocks."""
    kept, dropped = (pair(arch, "B2")[1] for _ in range(2))
    models.checkpoint_activations(dropped)
    for model in (kept, dropped):
        torch.manual_seed(4)
        model(image_BCHW).square().mean().backward()
    for one, other in zip(kept.parameters(), dropped.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
