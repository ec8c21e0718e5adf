"""A `fastdhm` that runs as a process of its own, for tests that do something to it and to its children."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 60  # for a loaded machine; what is asserted is much shorter


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)


def state_of(pid: int) -> str | None:
    """The letter of proc(5), None if the process is gone; a zombie is."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None
    return None if state in "ZX" else state


def children_of(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid and state_of(int(stat.parent.name)):
            found.append(int(stat.parent.name))
    return found


class Started:
    """A command that runs; ``out`` and ``err`` are what it has printed so far."""

    def __init__(self, argv: list[str], folder: Path, environ: dict[str, str], wrapper: list[str]):
        self._out, self._err = folder / "stdout", folder / "stderr"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            command = [*wrapper, sys.executable, "-m", "fastdhm", *argv]
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | environ)
        self.pid = self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def printed(self, text: str) -> None:
        wait_for(lambda: text in self.out or self.process.poll() is not None, text)
        assert text in self.out, self.out + self.err

    def child(self) -> int:
        """A child that lives."""
        wait_for(lambda: children_of(self.pid), "a child")
        return children_of(self.pid)[0]

    def ended(self, seconds: float) -> int:
        """Its exit status, which comes within so many seconds, and with no traceback."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {seconds} s:\n{self.out}{self.err}") from None
        assert "Traceback" not in self.out + self.err
        return status


@contextmanager
def started(
    argv: list[str], folder: Path, environ: dict[str, str] | None = None, wrapper: list[str] | None = None
) -> Iterator[Started]:
    """``fastdhm ARGV``, whose output lies in ``folder``; what is left of it in the end is killed."""
    folder.mkdir(exist_ok=True)
    run = Started(argv, folder, environ or {}, wrapper or [])
    try:
        yield run
    finally:
        for pid in [*children_of(run.pid), run.pid]:
            if state_of(pid):
                os.kill(pid, 9)
        run.process.wait()
