"""A teacher: a trained network, from whose predictions the branches learn beside the labels.

Its logits are a further row of the branches' logits, and it has a row in the weight matrix: the fused loss takes it in
the same pass. Legend: B batch, C channels, H height, W width, K classes.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.data.augment.transforms import shrink
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.sources.folder import one_form
from fastdhm.engine import distributed
from fastdhm.engine.build import load_trained
from fastdhm.engine.device import placed
from fastdhm.engine.fast.blocks import allow_compilations
from fastdhm.engine.fast.fuse import FusedForward
from fastdhm.engine.optim.schedule import image_sides
from fastdhm.errors import UserError, counted, few, first_line

TEACHER = "teacher"  # its name among those of the branches
LIBRARIES = ("torchvision:", "timm:")
NO_NAME = re.compile(r"class \d+")  # numbered by us, where a file has no names
WORDNET = re.compile(r"n\d{8}")  # ImageNet's folders; torchvision has English words for them


@dataclass(frozen=True)
class Found:
    """A trained network, and what it says of itself; None where it does not."""

    network: nn.Module
    told: str
    num_classes: int
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | tuple[int, int] | None = None


class Teacher(nn.Module):
    """Images as the run's network sees them to the teacher's logits ``[B, K]``, in eval mode and without gradient.

    ``gain_C`` and ``bias_C`` take the run's normalisation to the teacher's, ``order_K`` its classes to the run's.
    """

    gain_C: Tensor | None
    bias_C: Tensor | None
    order_K: Tensor | None
    told = ""
    """What it is, for a person."""

    def __init__(self, found: Found, config: TrainConfig, classes: tuple[str, ...]):
        super().__init__()
        self.network = models.BranchedModel(found.network, {}, {}, main=TEACHER)
        self.size = None if config.teacher_size is None else height_width(config.teacher_size)
        order_K = order_of_classes(classes, found, config)
        gain_C, bias_C = renormalise((config.mean, config.std), (found.mean or config.mean, found.std or config.std))
        for name, values in (("order_K", order_K), ("gain_C", gain_C), ("bias_C", bias_C)):
            self.register_buffer(name, values)
        self.digest = digest(found.network)
        self.requires_grad_(False).eval()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Of images on its device."""
        return self._logits(self.network, image_BCHW)

    def logits(self, compiled: int) -> Callable[[Tensor], Tensor]:
        """``forward`` as a step calls it: compiled for so many sizes of the images, or by fused ops where it can be."""
        if compiled:
            allow_compilations(compiled)
            return torch.compile(self.forward, dynamic=False)
        on_cpu = next(self.network.parameters()).device.type == "cpu"
        network = FusedForward(self.network) if on_cpu else self.network
        return lambda image_BCHW: self._logits(network, image_BCHW)

    @torch.no_grad()
    def _logits(self, network: Callable[[Tensor], Tensor], image_BCHW: Tensor) -> Tensor:
        if self.gain_C is not None and self.bias_C is not None:
            image_BCHW = image_BCHW * self.gain_C + self.bias_C
        if self.size is not None and self.size != image_BCHW.shape[-2:]:
            image_BCHW = F.interpolate(image_BCHW, self.size, mode="bilinear", antialias=True)
        logits_BK = network(image_BCHW)[0]
        return logits_BK if self.order_K is None else logits_BK.index_select(1, self.order_K)


def open_teacher(config: TrainConfig, classes: tuple[str, ...], device: torch.device) -> Teacher | None:
    """The teacher that a run asks for, on its device; every process has it. No random numbers are drawn.

    Raises:
        ValueError: there is none, it cannot be loaded, it knows other classes, or it does not take images of that size.
    """
    if config.teacher is None:
        return None
    with distributed.in_turn(), torch.random.fork_rng(devices=[]):
        found = find(config, len(classes))
    teacher = Teacher(found, config, classes)
    distributed.check_alike("teachers of ", {"weights": teacher.digest})
    teacher = placed(teacher, device)
    _try(teacher, config, found, device)
    teacher.told = found.told + _told_sizes(config, found)
    return teacher


def find(config: TrainConfig, num_classes: int) -> Found:
    """The network at ``config.teacher``, and what is known of it."""
    name, arch = config.teacher or "", config.teacher_arch
    if name.startswith(LIBRARIES):
        if arch is not None:
            raise UserError(f"teacher_arch is {arch}: {name} says its own, leave it out")
        trained = models.library_network(name)
        return Found(trained.network, f"{name} ({trained.weights})", *trained.facts)
    path = Path(name)
    if arch is not None and path.is_dir():
        raise UserError(f"teacher_arch is {arch}: the run {path} says its own, leave it out")
    if arch is not None:
        model = models.build(arch, num_classes, ())
        loaded = models.load_pretrained(model, arch, path)
        if loaded.new:
            raise UserError(
                f"teacher {path} has no classifier for the {num_classes} classes of {config.dataset}: "
                "train it on these first, as a run of its own"
            )
        notes = "".join(f", {note}" for note in loaded.notes)
        return Found(model.strip(), f"{arch} of {path}{notes}, normalised as this run", num_classes)
    try:
        run = load_trained(path)
    except UserError as error:
        foreign = path.is_file() and path.suffix != ".yaml"
        raise UserError(f"teacher: {error}" + "; if it is of another program, give --teacher-arch" * foreign) from error
    names = None if NO_NAME.fullmatch(run.classes[0]) else run.classes
    told, its = f"{run.config.arch} of {path}", run.config
    return Found(run.plain, told, len(run.classes), names, its.mean, its.std, its.image_size)


def order_of_classes(ours: tuple[str, ...], found: Found, config: TrainConfig) -> Tensor | None:
    """Where each of our classes is among the teacher's, None where they stand alike.

    They are compared by name where both have names of one kind, else by number.

    Raises:
        ValueError: it knows other classes; says which.
    """
    theirs, told = found.classes, f"the teacher ({found.told})"
    named = not any(NO_NAME.fullmatch(name) for name in ours)
    if theirs is None or not named or bool(WORDNET.fullmatch(ours[0])) != bool(WORDNET.fullmatch(theirs[0])):
        if found.num_classes != len(ours):
            raise UserError(
                f"{told} knows {counted(found.num_classes, 'class', 'classes')}, {config.dataset} has {len(ours)}: "
                "take one that was trained on these classes"
            )
        return None
    ours, theirs = (tuple(map(one_form, names)) for names in (ours, theirs))  # of Unicode, which has two for an accent
    lacks, more = (sorted(set(a) - set(b)) for a, b in ((ours, theirs), (theirs, ours)))
    if lacks or more or len(theirs) != len(ours):
        differ = [f"it lacks {few(lacks, 3)}"] * bool(lacks) + [f"it has {few(more, 3)} beside"] * bool(more)
        raise UserError(
            f"{told} knows other classes than {config.dataset} ({'; '.join(differ) or 'a name twice'}): "
            "take one that was trained on these"
        )
    return None if theirs == ours else torch.tensor([theirs.index(name) for name in ours])


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def renormalise(ours: Normalisation, theirs: Normalisation) -> tuple[Tensor | None, Tensor | None]:
    """Gain and bias of each channel, ``[C, 1, 1]``, that take images by our mean and deviation to theirs."""
    if ours == theirs:
        return None, None
    (mean, std), (their_mean, their_std) = (
        (torch.tensor(part, dtype=torch.float64) for part in n) for n in (ours, theirs)
    )
    gain_C, bias_C = std / their_std, (mean - their_mean) / their_std
    return gain_C.float()[:, None, None], bias_C.float()[:, None, None]


def digest(network: nn.Module) -> str:
    """What tells a network's weights from others, whatever file they are in."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def check_same(config: TrainConfig, teacher: Teacher | None, saved: str | None, path: Path) -> None:
    """``ValueError`` unless a resumed run has the teacher of its checkpoint at ``path``, bit for bit."""
    if saved != (teacher.digest if teacher is not None else None):
        raise UserError(
            f"the teacher at {config.teacher} has other weights than the one that {path} has learnt from: "
            "put that back, or start a new run"
        )


def _try(teacher: Teacher, config: TrainConfig, found: Found, device: torch.device) -> None:
    """``ValueError`` if it does not take the images of the run, at any of their sizes."""
    height, width = height_width(config.image_size)
    side = min(height, width)
    for part in image_sides(0.0, 1.0, side, config.progressive):
        image_BCHW = shrink(torch.zeros(1, 3, height, width, device=device), part)
        try:
            teacher(image_BCHW)
        except (RuntimeError, AssertionError, ValueError) as error:  # whatever its forward checks
            given = found.image_size or 224
            size = str(given) if isinstance(given, int) else ",".join(map(str, given))
            shape = "x".join(map(str, image_BCHW.shape[-2:]))
            raise UserError(
                f"the teacher ({found.told}) does not take images of {shape} ({first_line(error)}): "
                f"set --teacher-size {size}"
            ) from error


def _told_sizes(config: TrainConfig, found: Found) -> str:
    """What a person should know of the sizes of its images."""
    sees = config.teacher_size or config.image_size
    if found.image_size is None or height_width(sees) == height_width(found.image_size):
        return ""
    own, here = ("x".join(map(str, dict.fromkeys(height_width(size)))) for size in (found.image_size, sees))
    return f"; it was trained on images of {own} pixels and sees {here} here; --teacher-size sets others"
