"""Where numbers leave the device: sums are kept on it and copied to the host at log points, in one piece.

Legend: M branches, A those that a step computes, E what some steps measure.
"""

import json
import math
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fastdhm.engine.saved.names import LOG
from fastdhm.errors import UserError
from fastdhm.system.files import plain_name, sync, why_not_written, write_text, writing

PLACED = ("step", "epoch", "reid")  # the kinds of rows that must have an epoch
FAR = 2**62  # no run has so many steps


def to_host(tensor: Tensor) -> Any:
    """The tensor's values as Python numbers, in lists by its dimensions. The only wait for the device in the engine."""
    return tensor.tolist()


def term_name(teacher: str, student: str) -> str:
    """``ce/B0`` for a cross-entropy, ``mimic/B1->B2`` for a mimicking term."""
    return f"ce/{student}" if teacher == student else f"mimic/{teacher}->{student}"


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
    """Means of what only some steps measure."""

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

    def restore(self, saved: Tensor) -> None:
        """Take up the ``vectors`` of a checkpoint, which may have no columns for measurements.

        Raises:
            ValueError: they are of a network with other branches.
        """
        if saved.shape[1] not in (self.width, self.vectors.shape[1]):
            raise ValueError(f"sums of {saved.shape[1]} values, {self.vectors.shape[1]} are needed")
        self.vectors[:, : saved.shape[1]].copy_(saved)

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
        epoch, before = to_host(self.vectors)
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


class Log:
    """``log.jsonl`` and TensorBoard events of a run.

    A run resumed at ``step``, with ``epoch`` epochs behind it, drops the rows that its checkpoint does not know of.
    ``say`` tells a person of rows that are damaged, and of a TensorBoard that does not work here.
    """

    def __init__(self, run_dir: Path, step: int, epoch: int, say: Callable[[str], None] = lambda text: None):
        self.path, self.say = run_dir / LOG, say
        rows, damaged = _read_lines(self.path)
        if damaged:
            lines = ", ".join(map(str, damaged[:5])) + ", ..." * (len(damaged) > 5)
            say(f"{self.path}: damaged in {len(damaged):,} lines ({lines}), which are left out; the others are kept")
        rows = [r for r in rows if (r["epoch"] <= epoch if r["kind"] == "epoch" else r["step"] <= step)]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.file = open(self.path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - lives as long as the run
        self.open = ExitStack()
        self.excepthook, threading.excepthook = threading.excepthook, self._in_a_thread
        self.folder, self.first_step = run_dir / "tensorboard", step + 1
        self.folder.mkdir(exist_ok=True)

    @cached_property
    def tensorboard(self):
        """TensorBoard's writer, begun with the first row: the first step does not wait for its import.

        None where it does not work, which is said once: log.jsonl has the same numbers.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(self.open.enter_context(plain_name(self.folder)), purge_step=self.first_step)
        except OSError:
            raise
        except Exception as error:  # of any kind: with another protobuf it is a TypeError
            why = " ".join(str(error).split())[:200] or type(error).__name__
            self.say(f"TensorBoard cannot be used here ({why}): the run goes on without; its log is {self.path}")
            return None

    def write(self, kind: str, *, step: int, **scalars: Any) -> None:
        """Add a row of ``kind`` ("startup", "step", "epoch", "compile" or "reid")."""
        with writing(self.path):
            self.file.write(json.dumps({"kind": kind, "step": step, **scalars}) + "\n")
            for name, value in scalars.items() if self.tensorboard else ():
                self.tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """Have the disk hold all rows so far."""
        with writing(self.path):
            sync(self.path)

    def close(self) -> None:
        """Flush and close both."""
        with writing(self.path), ExitStack() as both:
            both.callback(self.open.close)
            both.callback(setattr, threading, "excepthook", self.excepthook)
            if vars(self).get("tensorboard"):  # nothing was written otherwise
                both.callback(self.tensorboard.close)
            both.callback(self.file.close)

    def _in_a_thread(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own, whose failure :meth:`write` meets too: once is enough."""
        if args.exc_value is None or why_not_written(args.exc_value, self.folder / "events") is None:
            self.excepthook(args)


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The complete rows of a run's ``log.jsonl``: a kill can cut the last one, a bad disk can damage any."""
    return _read_lines(run_dir / LOG)[0]


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The complete rows of a log, and the numbers of damaged lines; a last line that was cut is not among these."""
    try:
        *lines, cut = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    found = [_row(line) for line in lines]
    last = _row(cut)
    damaged = [number for number, row in enumerate(found, 1) if row is None and lines[number - 1].strip(b"\0 \r")]
    return [row for row in (*found, last) if row is not None], damaged


def _row(line: bytes) -> dict[str, Any] | None:
    """The row in a line; also if it follows the remains of another row, as after a power cut."""
    try:
        row = json.loads(line[max(0, line.rfind(b'{"kind"')) :].strip(b"\0"))
    except (ValueError, RecursionError):  # no JSON, or no UTF-8
        return None
    if not isinstance(row, dict) or not isinstance(kind := row.get("kind"), str):
        return None
    places = [row.get("step"), row.get("epoch", None if kind in PLACED else 0)]
    numbers = all(_is_number(value) for name, value in row.items() if name != "kind")
    return row if numbers and all(_is_number(place) and 0 <= place < FAR for place in places) else None


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number that a run writes. NaN is: a network that diverged has validation losses like that."""
    return type(value) is float or (type(value) is int and abs(value) < FAR)
