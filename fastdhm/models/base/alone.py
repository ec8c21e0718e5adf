"""A side branch as a network of its own (Table 5): the trunk up to the fork, then the branch.

Legend: B batch, C channels, H height, W width, K classes.
"""

from itertools import accumulate

from torch import Tensor, nn

from fastdhm.errors import UserError, unknown
from fastdhm.models.base.branched import BranchedModel
from fastdhm.models.base.recompute import Recomputing
from fastdhm.models.base.trace import probe


class _Reached(Exception):
    """The fork is reached; ``args`` holds the output of the module there. Of this form torch.compile follows it."""


def leave(module: nn.Module, args: tuple, output: Tensor) -> None:
    """The forward hook of a fork: nothing of the trunk after it is run."""
    if not Recomputing.active:  # else somebody needs what is computed again, and nobody waits at the fork
        raise _Reached(output)


class AloneBranch(nn.Module):
    """``branch(what trunk.get_submodule(tap) gives)``: images to logits [B, K]; the trunk is not run any further.

    The trunk keeps its class and its parameter names, without the layers behind the fork: whatever its forward does, it
    is left by an exception as soon as the fork is reached.

    Args:
        trunk: a plain network, changed in place.
        tap: the module of it after which the branch forks.
        branch: that module's output to logits.
        size_CHW: of the images to find out with which layers come after the fork.
    """

    def __init__(self, trunk: nn.Module, tap: str, branch: nn.Module, size_CHW: tuple[int, int, int]):
        super().__init__()
        trunk.get_submodule(tap).register_forward_hook(leave)
        _drop_behind(trunk, tap, size_CHW)
        self.trunk, self.branch = trunk, branch

    def forward(self, image_BCHW: Tensor) -> Tensor:
        try:
            self.trunk(image_BCHW)
        except _Reached as reached:
            (feature,) = reached.args
        return self.branch(feature)


def _drop_behind(trunk: nn.Module, tap: str, size_CHW: tuple[int, int, int]) -> None:
    """Put an empty module in the place of each that does not run before ``tap`` does.

    Only of those beside the way to it: a module that has run to its end keeps all its parts, called or not. An empty
    one stays, as a forward may look up the next layer before it runs this one.
    """
    way = ["", *accumulate(tap.split(".")[:-1], lambda path, name: f"{path}.{name}")]

    def run(network: nn.Module, images_BCHW: Tensor) -> set[str]:
        ran: set[str] = set()
        for name, module in network.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
        try:
            network.eval()(images_BCHW)
        except _Reached:
            return ran
        raise UserError(f"{type(trunk).__name__} does not pass {tap}: no branch that forks there can run alone")

    ran = probe(trunk, size_CHW, run)
    for path in way:
        module = trunk.get_submodule(path)
        for name, _ in list(module.named_children()):
            if f"{path}.{name}".removeprefix(".") not in ran:
                setattr(module, name, nn.Identity())


def alone(model: BranchedModel, name: str, size_CHW: tuple[int, int, int]) -> BranchedModel:
    """Branch ``name`` of ``model`` without any other: a model with that one classifier, by the branch's own name.

    ``strip()`` of it is the plain network, an :class:`AloneBranch`. The model given away is not used again: its modules
    are the new one's. "B0" is the trunk.

    Raises:
        ValueError: the model does not have the branch, or does not run on images of that size.
    """
    if name == "B0":
        return BranchedModel(model.strip(), {}, {})
    if name not in model.branches:
        raise unknown("branch", name, model.branch_names)
    network = AloneBranch(model.strip(), model.taps[name], model.branches[name], size_CHW)
    return BranchedModel(network, {}, {}, main=name)
