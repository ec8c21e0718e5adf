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
    """Raised at the fork; ``args`` holds the output of the module there. torch.compile can follow this form."""


def leave(module: nn.Module, args: tuple, output: Tensor) -> None:
    """The forward hook at a fork: the trunk stops there."""
    if not Recomputing.active:  # a recomputation has to run to its end, and nothing would catch the exception
        raise _Reached(output)


class AloneBranch(nn.Module):
    """``branch(output of trunk.get_submodule(tap))``: images to logits [B, K]; the trunk stops at the fork.

    The trunk keeps its class and its parameter names, but not the layers behind the fork. An exception ends its forward
    as soon as the fork is reached, whatever that forward does.

    Args:
        trunk: a plain network, changed in place.
        tap: the trunk's module after which the branch forks.
        branch: takes the output of that module to logits.
        size_CHW: image size for the run that finds the layers behind the fork.
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
    """Replace each module that does not run before ``tap`` by an identity.

    Only modules beside the path to ``tap`` are replaced: a module that has run to its end keeps all its parts, called
    or not. The identity is needed because a forward may look up the next layer before it runs this one.
    """
    parents = ["", *accumulate(tap.split(".")[:-1], lambda path, name: f"{path}.{name}")]

    def run(network: nn.Module, images_BCHW: Tensor) -> set[str]:
        ran: set[str] = set()
        for name, module in network.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
        try:
            network.eval()(images_BCHW)
        except _Reached:
            return ran
        raise UserError(f"{type(trunk).__name__} does not run {tap}, where the branch forks: choose another branch")

    ran = probe(trunk, size_CHW, run)
    for path in parents:
        module = trunk.get_submodule(path)
        for name, _ in list(module.named_children()):
            if f"{path}.{name}".removeprefix(".") not in ran:
                setattr(module, name, nn.Identity())


def alone(model: BranchedModel, name: str, size_CHW: tuple[int, int, int]) -> BranchedModel:
    """Branch ``name`` of ``model`` without the others: a model with one classifier, named after the branch.

    Its ``strip()`` gives the plain network, an :class:`AloneBranch`. "B0" is the trunk. Do not use ``model``
    afterwards: the new model takes its branch.

    Raises:
        ValueError: the model does not have the branch, or does not run on images of that size.
    """
    if name == "B0":
        return BranchedModel(model.strip(), {}, {})
    if name not in model.branches:
        raise unknown("branch", name, model.branch_names)
    network = AloneBranch(model.strip(), model.taps[name], model.branches[name], size_CHW)
    return BranchedModel(network, {}, {}, main=name)
