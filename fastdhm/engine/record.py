"""Where numbers leave the device: sums are kept on it and copied to the host at log points, in one piece.

Legend: M branches.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fastdhm.errors import UserError
from fastdhm.files import replacing


def to_host(tensor: Tensor) -> list:
    """The tensor's values as Python numbers: waits for the device. The only such wait in the engine."""
    return tensor.tolist()


def term_name(teacher: str, student: str) -> str:
    """``ce/B0`` for a cross-entropy, ``mimic/B1->B2`` for a mimicking term."""
    return f"ce/{student}" if teacher == student else f"mimic/{teacher}->{student}"


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Sums:
    """Sums over some steps of training, on the host."""

    steps: float
    images: float
    loss: float
    term_MM: list[list[float]]
    correct_M: list[float]

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(
            self.steps - other.steps,
            self.images - other.images,
            self.loss - other.loss,
            [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(self.term_MM, other.term_MM, strict=True)],
            [a - b for a, b in zip(self.correct_M, other.correct_M, strict=True)],
        )

    def scalars(self, weights_MM: Tensor, names: tuple[str, ...]) -> dict[str, float]:
        """Means per step and image: the loss, each term that has a weight, each branch's error in percent."""
        used_MM = to_host(weights_MM != 0)
        scalars = {"loss": self.loss / self.steps}
        for p, teacher in enumerate(names):
            for q, student in enumerate(names):
                if used_MM[p][q]:
                    scalars[term_name(teacher, student)] = self.term_MM[p][q] / self.steps
        errors = {name: 100 * (1 - correct / self.images) for name, correct in zip(names, self.correct_M, strict=True)}
        return scalars | {f"train_error/{name}": error for name, error in errors.items()}


class TrainingSums:
    """Running sums of an epoch, in float64 on the device; adding to them never waits for it.

    ``vectors`` holds two rows: the epoch's sums so far, and what they were at the last log point.
    """

    NEVER = -1.0

    def __init__(self, names: tuple[str, ...], device: torch.device):
        self.names = names
        self.vectors = torch.zeros(2, 4 + len(names) ** 2 + len(names), dtype=torch.float64, device=device)
        self.reset()

    def reset(self) -> None:
        """Begin a new epoch."""
        self.vectors.zero_()
        self.vectors[:, 0] = self.NEVER

    def add(self, step: int, images: int, loss: Tensor, terms_MM: Tensor, correct_M: Tensor) -> None:
        """Add one optimizer step: its mean loss and terms, and how many images each branch got right."""
        total = self.vectors[0]
        total[0] = torch.where((total[0] < 0) & ~loss.isfinite(), float(step), total[0])
        total[1] += 1
        total[2] += images
        total[3] += loss
        total[4:] += torch.cat([terms_MM.flatten(), correct_M])

    def read(self) -> Sums:
        """The sums of the epoch so far.

        Raises:
            NonFiniteLoss: a step's loss was not finite; the message names the first such step and the terms.
        """
        return self._read()[0]

    def read_interval(self) -> Sums:
        """The sums since the last log point, which is now. Raises as :meth:`read`."""
        epoch, before = self._read()
        self.vectors[1] = self.vectors[0]
        return epoch - before

    def _read(self) -> tuple[Sums, Sums]:
        epoch, before = (self._parse(row) for row in to_host(self.vectors))
        return epoch, before

    def _parse(self, row: list[float]) -> Sums:
        M = len(self.names)
        first_bad, steps, images, loss, *rest = row
        terms_MM = [rest[p * M : (p + 1) * M] for p in range(M)]
        if first_bad != self.NEVER:
            pairs = [(p, q) for p in range(M) for q in range(M) if not math.isfinite(terms_MM[p][q])]
            bad = [term_name(self.names[p], self.names[q]) for p, q in pairs]
            bad.sort()  # a broken cross-entropy breaks the mimicking too: name it first
            raise NonFiniteLoss(
                f"the loss is not finite since step {first_bad:.0f}: {', '.join(bad) or 'the weighted sum'}"
            )
        return Sums(steps, images, loss, terms_MM, rest[M * M :])


class Log:
    """``log.jsonl`` and TensorBoard events of a run.

    A run resumed at ``step``, with ``epoch`` epochs behind it, drops the rows that its checkpoint does not know of.
    """

    def __init__(self, run_dir: Path, step: int, epoch: int):
        self.path = run_dir / "log.jsonl"
        rows = [r for r in read_log(run_dir) if (r["step"] <= step if r["kind"] == "step" else r["epoch"] <= epoch)]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.file = open(self.path, "a", buffering=1)  # noqa: SIM115 - lives as long as the run
        self.tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, *, step: int, **scalars: Any) -> None:
        """Add a row of ``kind`` ("step" or "epoch")."""
        self.file.write(json.dumps({"kind": kind, "step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self.tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self.file.close()
        self.tensorboard.close()


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``log.jsonl``; a last line that a kill cut short is left out."""
    path = run_dir / "log.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
