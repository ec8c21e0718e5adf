"""Where numbers leave the device, in one piece at log points, and the log that they are written to."""

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor

from fastdhm.engine.saved.names import LOG
from fastdhm.engine.saved.watchers import Watcher, why
from fastdhm.errors import UserError
from fastdhm.system.files import plain_name, sync, why_not_written, write_text, writing

PLACED = ("step", "epoch", "reid")  # the kinds of rows that must have an epoch
FAR = 2**62  # no run has so many steps
NEAR = 2**14  # bytes at the end of a log that last_row reads: some rows


def to_host(tensor: Tensor) -> Any:
    """The tensor's values as Python numbers, in lists by its dimensions. The only wait for the device in the engine."""
    return tensor.tolist()


def to_array(tensor: Tensor) -> np.ndarray:
    """The tensor's values as an array: a wait like :func:`to_host`, for values by the million."""
    return tensor.cpu().numpy()


def term_name(teacher: str, student: str) -> str:
    """``ce/B0`` for a cross-entropy, ``mimic/B1->B2`` for a mimicking term."""
    return f"ce/{student}" if teacher == student else f"mimic/{teacher}->{student}"


class Log:
    """``log.jsonl`` and TensorBoard events of a run, and what goes to other ``watchers``.

    A run resumed at ``step``, with ``epoch`` epochs behind it, drops the rows that its checkpoint does not know of.
    ``say`` tells a person of rows that are damaged, and of a TensorBoard that does not work here.
    """

    def __init__(
        self,
        run_dir: Path,
        step: int,
        epoch: int,
        say: Callable[[str], None] = lambda text: None,
        watchers: Sequence[Watcher] = (),
    ):
        self.path, self.say, self.watchers = run_dir / LOG, say, watchers
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
            self.say(f"TensorBoard cannot be used here ({why(error)}): the run goes on without; its log is {self.path}")
            return None

    def write(self, kind: str, *, step: int, **scalars: Any) -> None:
        """Add a row of ``kind`` ("startup", "step", "epoch", "compile" or "reid")."""
        with writing(self.path):
            self.file.write(json.dumps({"kind": kind, "step": step, **scalars}) + "\n")
            for name, value in scalars.items() if self.tensorboard else ():
                self.tensorboard.add_scalar(f"{kind}/{name}", value, step)
        for watcher in self.watchers:
            watcher.write(kind, step, scalars)

    def sync(self) -> None:
        """Have the disk hold all rows so far."""
        with writing(self.path):
            sync(self.path)

    def close(self) -> None:
        """Flush and close all."""
        with writing(self.path), ExitStack() as all_of_them:
            for watcher in self.watchers:
                all_of_them.callback(watcher.close)
            all_of_them.callback(self.open.close)
            all_of_them.callback(setattr, threading, "excepthook", self.excepthook)
            if vars(self).get("tensorboard"):  # nothing was written otherwise
                all_of_them.callback(self.tensorboard.close)
            all_of_them.callback(self.file.close)

    def _in_a_thread(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own, whose failure :meth:`write` meets too: once is enough."""
        if args.exc_value is None or why_not_written(args.exc_value, self.folder / "events") is None:
            self.excepthook(args)


class NoLog(Log):
    """The log of a process that writes none: the first of a run writes for all."""

    def __init__(self, *_: Any) -> None:
        pass

    def write(self, kind: str, **values: Any) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The complete rows of a run's ``log.jsonl``: a kill can cut the last one, a bad disk can damage any."""
    return _read_lines(run_dir / LOG)[0]


def last_row(run_dir: Path) -> dict[str, Any]:
    """The last row of a step or an epoch in a run's log, which may be growing; empty if there is none near its end."""
    try:
        with open(run_dir / LOG, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - NEAR))
            rows = [row for line in file.read().split(b"\n") if (row := _row(line)) is not None]
    except OSError:
        return {}
    return next((row for row in reversed(rows) if row["kind"] in ("step", "epoch")), {})


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
