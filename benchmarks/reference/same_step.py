"""Checks that the engine takes the same training steps as the reference, from the same weights on the same batch.

float64 is taken as exact. The engine may be off by as much as plain torch in the engine's number format and memory
layout: the reference in float32 or under bfloat16 autocast, channels last. This yardstick is needed because a rounding
near zero can switch a ReLU and so change a gradient by far more than a rounding, in any implementation.

Legend: A the branches that a step computes, B batch, C channels, H height, W width.
"""

import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdhm.benchmarks.harness import machine
from fastdhm.benchmarks.harness.timing import failure
from fastdhm.benchmarks.reference.contender import Engine, random_batch
from fastdhm.benchmarks.reference.model import Reference
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.engine.build import build_model
from fastdhm.engine.device import give_back_freed_memory, placed
from fastdhm.engine.fast.graphs import WARM_UP
from fastdhm.errors import UserError

STEPS = 2  # the second one also tests the momentum and the batch norm updates of the first
LR = 0.01  # so small that the second step starts near the first
# The error may be this many times the yardstick's: over all weights together, and in the worst tensor, where a single
# ReLU can decide.
SLACK, WORST_SLACK = 3.0, 10.0
# An error this small, relative to the change, passes for any yardstick.
FLOORS = {torch.float32: (1e-3, 1e-2), torch.bfloat16: (2**-6, 2**-3), torch.float16: (2**-8, 2**-5)}
TERM_FLOORS = {torch.float32: 1e-4, torch.bfloat16: 2**-5, torch.float16: 2**-7}
FREE_SHARE = 0.7  # of the free memory that a step may take
HELD = 2.5  # memory of a step over that of its forward activations: gradients, buffers of convolutions


@dataclass(frozen=True)
class Taken:
    """The result of some steps in float64: the loss terms of the first, all weights and statistics at the end."""

    terms: Tensor
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Errors:
    """Relative errors against float64: of the terms, of all weight changes together, and of each tensor's change."""

    terms: float
    total: float
    tensors: dict[str, float]


class Yard:
    """Initial weights and a batch, the float64 steps from there, and plain torch's errors in other formats."""

    def __init__(self, config: TrainConfig, num_classes: int):
        self.config = dataclasses.replace(config, lr=LR)
        self.num_classes, self.device = num_classes, torch.device(config.device)
        torch.manual_seed(config.seed)
        self.model = build_model(config, num_classes)
        self.images = images_that_fit(self.model, config, self.device)
        batch = random_batch(dataclasses.replace(self.config, batch_size=self.images), num_classes)
        engine = self.engine(self.config)
        self.image_BCHW, self.labels = engine.run.prepare(batch, 0, engine.run.side)
        self.before = _state(self.model)
        self.yardsticks: dict[torch.dtype, Errors] = {}
        self.oracle = self._by_reference(torch.float64, torch.float64, torch.contiguous_format)

    def engine(self, config: TrainConfig) -> Engine:
        """An engine at the initial weights."""
        engine = Engine(dataclasses.replace(config, lr=LR, accumulate=1), self.num_classes)
        engine.run.model.load_state_dict(self.model.state_dict())
        return engine

    def fault(self, engine: Engine) -> str | None:
        """What is wrong with an engine that this made. Its float32 form comes first: rounding in a narrow type hides
        errors."""
        config = engine.run.config
        if config.precision != "float32":
            wide = self.engine(dataclasses.replace(config, precision="float32", compile="off"))
            if wrong := failure(lambda: self.judge_engine(wide)):
                return wrong
        return failure(lambda: self.judge_engine(engine))

    def reference(self, **settings) -> Reference:
        """A reference at the initial weights."""
        return Reference(copy.deepcopy(self.model), self.config, self.device, **settings)

    def judge_engine(self, engine: Engine) -> str | None:
        """What is wrong with the steps of an engine at the initial weights, or None; runs the steps."""
        active, weights_AA = engine.run.sample()
        engine.run.set_learning_rate(LR)
        given = (self.image_BCHW, self.labels, weights_AA, active)
        with machine.tf32(False), engine.captured(lambda: self._rewind(engine, given)):
            # a captured step's results are overwritten by its next replay
            terms = [engine.step(*given)[1].clone() for _ in range(STEPS)]
        present_AA = weights_AA != 0
        taken = Taken(terms[0][present_AA].double().cpu(), _state(engine.run.model))
        precision = engine.run.precision
        return verdict(self._errors(taken), self._yardstick(precision), precision)

    def _rewind(self, engine: Engine, given: tuple) -> None:
        """Reset an engine with a captured step to the initial weights, in the memory that its graph reads."""
        for _ in range(WARM_UP + 1):
            engine.step(*given)
        engine.run.model.load_state_dict(self.model.state_dict())
        for state in engine.run.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def judge_reference(self) -> str | None:
        """What is wrong with the reference, or None: its error must be that of float32."""
        plain = self._by_reference(torch.float32, torch.float32, torch.contiguous_format)
        return verdict(self._errors(plain), self._yardstick(torch.float32), torch.float32)

    def _yardstick(self, precision: torch.dtype) -> Errors:
        """The errors of plain torch in that number format, channels last."""
        if precision not in self.yardsticks:
            taken = self._by_reference(torch.float32, precision, torch.channels_last)
            self.yardsticks[precision] = self._errors(taken)
        return self.yardsticks[precision]

    def _by_reference(self, dtype: torch.dtype, precision: torch.dtype, layout: torch.memory_format) -> Taken:
        model = placed(copy.deepcopy(self.model).to(dtype), self.device, layout)
        autocast = precision if precision != dtype else torch.float32
        reference = Reference(model, self.config, self.device, precision=autocast)
        image_BCHW = self.image_BCHW.to(dtype).contiguous(memory_format=layout)
        with machine.tf32(False):  # true float32, whichever layouts have TF32 in cuDNN
            logged = [reference.step(image_BCHW, self.labels.target_B) for _ in range(STEPS)]
        terms = [value for name, value in logged[0].items() if "->" in name]
        return Taken(torch.tensor(terms, dtype=torch.float64), _state(reference.network))

    def _errors(self, taken: Taken) -> Errors:
        gaps = {name: (taken.state[name] - right).norm() for name, right in self.oracle.state.items()}
        changes = {name: (right - self.before[name]).norm() for name, right in self.oracle.state.items()}
        weights = [name for name, _ in self.model.named_parameters()]
        total = _norm(gaps[name] for name in weights) / _norm(changes[name] for name in weights)
        tensors = {name: (gap / changes[name].clamp(min=1e-300)).item() for name, gap in gaps.items() if changes[name]}
        unmoved = {name: float("inf") for name, gap in gaps.items() if not changes[name] and gap}
        terms = (taken.terms - self.oracle.terms).norm() / self.oracle.terms.norm()
        return Errors(terms.item(), total.item(), tensors | unmoved)


def verdict(found: Errors, yardstick: Errors, precision: torch.dtype) -> str | None:
    """What is wrong with steps that have the errors ``found`` (plain torch: ``yardstick``), or None."""
    floor, worst_floor = FLOORS[precision]
    name = str(precision).removeprefix("torch.")
    limits = [("the loss", found.terms, max(SLACK * yardstick.terms, TERM_FLOORS[precision]))]
    limits += [
        (f"the change of {tensor}", error, max(WORST_SLACK * yardstick.tensors.get(tensor, 0.0), worst_floor))
        for tensor, error in found.tensors.items()
    ]
    limits.append(("the change of all weights", found.total, max(SLACK * yardstick.total, floor)))
    for what, error, limit in limits:
        if not error <= limit:  # written so that NaN is wrong
            return f"{what} is off by {error:.2g} of itself after {STEPS} steps in {name}: must be at most {limit:.2g}"
    return None


def images_that_fit(model: nn.Module, config: TrainConfig, device: torch.device) -> int:
    """How many images of a batch fit float64 steps in memory; ``ValueError`` if float32 cannot hold them all."""
    free, needed = room(model, config, device, torch.float64.itemsize)
    fit = config.batch_size if free is None else int(FREE_SHARE * free / needed)
    if free is not None and (fit < 2 or config.batch_size > 2 * fit):
        height, width = height_width(config.image_size)
        raise UserError(
            f"--batch-size is {config.batch_size}: a step of {config.arch} at {height}x{width} pixels needs about "
            f"{max(2, config.batch_size / 2) * needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; choose fewer "
            "or smaller images, or a smaller network"
        )
    return min(config.batch_size, fit)


def room(model: nn.Module, config: TrainConfig, device: torch.device, itemsize: int) -> tuple[int | None, float]:
    """Bytes that are free (None where the system does not say), and those that a step takes for an image."""
    give_back_freed_memory()  # else memory that earlier steps freed would count as used
    free = machine.free_bytes(device)
    return free, HELD * itemsize * activations(model, height_width(config.image_size))


def activations(model: nn.Module, size_HW: tuple[int, int]) -> int:
    """The number of values that the layers of ``model`` output for one image; counted on the meta device."""
    count = 0

    def add(module: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal count
        count += output.numel()

    ghost = copy.deepcopy(model).to("meta").eval()
    for module in ghost.modules():
        if not any(module.children()):
            module.register_forward_hook(add)
    ghost(torch.zeros(1, 3, *size_HW, device="meta"))
    return count


def _norm(norms: Iterable[Tensor]) -> Tensor:
    """The norm of several tensors together."""
    return torch.stack(list(norms)).norm()


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().double().cpu() for name, t in model.state_dict().items() if t.is_floating_point()}
