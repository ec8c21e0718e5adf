"""What the steps of an epoch come to: sums that are kept on the device, of each process, and read as those of the run.

Legend: M branches, A those that a step computes, E what some steps measure, N processes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdhm.engine import distributed
from fastdhm.engine.saved.record import term_name, to_host
from fastdhm.errors import UserError


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Sums:
    """Sums over some steps of training, on the host; each term's and branch's over the steps that it took part in."""

    steps: float
    loss: float
    term_MM: list[list[float]]
    term_steps_MM: list[list[float]]
    correct_M: list[float]
    images_M: list[float]
    measured: dict[str, float]
    """Means of what some steps measured beside."""

    def scalars(self, names: tuple[str, ...]) -> dict[str, float]:
        """Means per step and image: the loss, each term that took part, each computed branch's error in percent."""
        scalars = {"loss": self.loss / self.steps}
        for p, teacher in enumerate(names):
            for q, student in enumerate(names):
                if self.term_steps_MM[p][q]:
                    scalars[term_name(teacher, student)] = self.term_MM[p][q] / self.term_steps_MM[p][q]
        for name, correct, images in zip(names, self.correct_M, self.images_M, strict=True):
            if images:
                scalars[f"train_error/{name}"] = 100 * (1 - correct / images)
        return scalars | self.measured


class TrainingSums:
    """Running sums of an epoch, in float64 on the device; adding to them never waits for it.

    ``vectors`` holds two rows: the epoch's sums so far, and what they were at the last log point. A row is the first
    step with a broken loss, the number of steps, the sum of the losses, then the fields of :class:`Sums` laid flat; at
    its end, for each of the scalars ``measured`` by some steps only, their sum and then their number.
    """

    NEVER = -1.0
    HEAD = 3

    def __init__(self, names: tuple[str, ...], device: torch.device, measured: tuple[str, ...] = ()):
        self.names, self.measured = names, measured
        self.width = self.HEAD + 2 * len(names) * (len(names) + 1)  # of what every step adds to
        self.vectors = torch.zeros(2, self.width + 2 * len(measured), dtype=torch.float64, device=device)
        # Places are made of what lies on the device: a list of numbers from the host would wait for it.
        self.numbers = torch.arange(self.vectors.shape[1], device=device)
        self.places: dict[tuple[str, ...], Tensor] = {}
        images = self.HEAD + 2 * len(names) ** 2  # what comes before is a mean over a process's images
        self._once = (self.numbers > 0) & ((self.numbers < images) | (self.numbers >= self.width))
        self.reset()

    def reset(self) -> None:
        """Begin a new epoch."""
        self.vectors.zero_()
        self.vectors[:, 0] = self.NEVER

    def add(
        self,
        step: int,
        images: int,
        loss: Tensor,
        terms_AA: Tensor,
        correct_A: Tensor,
        weights_AA: Tensor,
        active: tuple[str, ...],
    ) -> None:
        """Add one optimizer step: its mean loss and terms, and how many images each branch got right.

        The branches are B0 and the ``active`` ones; a term takes part if it has a weight.
        """
        total, present_AA = self.vectors[0], weights_AA != 0
        total[0] = torch.where((total[0] < 0) & ~loss.isfinite(), float(step), total[0])
        total[1] += 1
        total[2] += loss
        values = [terms_AA.where(present_AA, 0).flatten(), present_AA.flatten(), correct_A]
        values.append(torch.full_like(correct_A, images))
        total.index_add_(0, self._places(active), torch.cat(values).to(total.dtype))

    def measure(self, values: dict[str, Tensor]) -> None:
        """Add scalars that this step measured, some of ``measured``; values that are not finite are ignored."""
        if not values:
            return
        value_E = torch.stack(list(values.values()))
        finite_E = value_E.isfinite()
        added = torch.cat([value_E.where(finite_E, 0), finite_E.to(value_E.dtype)])
        self.vectors[0].index_add_(0, self._measured_places(tuple(values)), added.to(self.vectors.dtype))

    def merged(self) -> Tensor:
        """``vectors`` as one process would have them: the mean over processes of what a step has once, the sum of its
        images."""
        first_2, vectors = self.vectors[:, 0].clone(), self.vectors.clone()
        if distributed.count() > 1:
            first_2 = first_2.masked_fill(first_2 == self.NEVER, math.inf)
            distributed.sum_(vectors)
            distributed.min_(first_2)
            vectors = torch.where(self._once, vectors / distributed.count(), vectors)
            vectors[:, 0] = first_2.masked_fill(first_2 == math.inf, self.NEVER)
        return vectors

    def restore(self, saved: Tensor) -> None:
        """Take up the ``merged`` sums of a checkpoint, which may have no columns for measurements.

        Raises:
            ValueError: they are of a network with other branches.
        """
        if saved.shape[1] not in (self.width, self.vectors.shape[1]):
            raise ValueError(f"sums of {saved.shape[1]} values, {self.vectors.shape[1]} are needed")
        self.reset()
        if distributed.rank() == 0:
            self.vectors[:, : saved.shape[1]].copy_(saved)
            self.vectors[:] = torch.where(self._once, self.vectors * distributed.count(), self.vectors)

    def _measured_places(self, names: tuple[str, ...]) -> Tensor:
        if names not in self.places:
            place_E = torch.stack([self.numbers[self.width + self.measured.index(name)] for name in names])
            self.places[names] = torch.cat([place_E, place_E + len(self.measured)])
        return self.places[names]

    def _places(self, active: tuple[str, ...]) -> Tensor:
        """Where in a row the values of a step go; on the device, so made once for each set of branches."""
        if active not in self.places:
            M = len(self.names)
            branch_A = torch.stack([self.numbers[m] for m in (0, *map(self.names.index, active))])
            pair_AA = (branch_A[:, None] * M + branch_A).flatten()
            fields = [pair_AA, M * M + pair_AA, 2 * M * M + branch_A, 2 * M * M + M + branch_A]
            self.places[active] = torch.cat(fields) + self.HEAD
        return self.places[active]

    def read(self) -> Sums:
        """The sums of the epoch so far.

        Raises:
            NonFiniteLoss: a step's loss was not finite; the message names the first such step and the terms.
        """
        return self._parse(self._rows()[0])

    def read_interval(self) -> Sums:
        """The sums since the last log point, which is now. Raises as :meth:`read`."""
        epoch, before = self._rows()
        self.vectors[1] = self.vectors[0]
        return self._parse([now - then for now, then in zip(epoch, before, strict=True)])

    def _rows(self) -> tuple[list[float], list[float]]:
        epoch, before = to_host(self.merged())
        if epoch[0] != self.NEVER:
            terms_MM = self._parse(epoch).term_MM
            pairs = [(p, q) for p, row in enumerate(terms_MM) for q, term in enumerate(row) if not math.isfinite(term)]
            bad = [term_name(self.names[p], self.names[q]) for p, q in pairs]
            bad.sort()  # a broken cross-entropy breaks the mimicking too: name it first
            raise NonFiniteLoss(
                f"the loss is not finite since step {epoch[0]:.0f}: {', '.join(bad) or 'the weighted sum'}"
            )
        return epoch, before

    def _parse(self, row: list[float]) -> Sums:
        M = len(self.names)
        _, steps, loss, *rest = row
        rows = [rest[start : start + M] for start in range(0, 2 * M * (M + 1), M)]
        E = len(self.measured)
        sums, counts = row[self.width : self.width + E], row[self.width + E :]
        measured = {name: sums[e] / counts[e] for e, name in enumerate(self.measured) if counts[e]}
        return Sums(steps, loss, rows[:M], rows[M : 2 * M], rows[-2], rows[-1], measured)
