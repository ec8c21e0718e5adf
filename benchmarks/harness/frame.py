"""The frame of every benchmark: where it runs, what it prints, and the files that it leaves.

A benchmark is a file with ``bench(frame, **its own flags) -> exit status``. It checks its flags, compares ``with
frame.measuring()``, and ends in :meth:`Frame.conclude`; the rest of the file is its question.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fastdhm.benchmarks.harness import machine, report
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.timing import Comparison, Peer
from fastdhm.engine.device import computing_on, pick_device
from fastdhm.errors import UserError, counted, unknown
from fastdhm.system import processors
from fastdhm.system.console import Console
from fastdhm.system.paths import expanded


class Frame:
    """The flags and the output that all benchmarks share.

    Args:
        name: of the benchmark and of its files.
        device: auto, cpu, cuda or cuda:N.
        threads: of torch (None: torch's default).
        rounds: samples of each peer; None if the benchmark counts them itself.
        quick: a smoke run: small, and nothing is compiled.
        out: folder for JSON, CSV and plots.
        json: print one JSON object on stdout and everything else on stderr.

    Raises:
        ValueError: a count below 1, more threads than processors, or no such device.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str = "cpu",
        threads: int | None = None,
        rounds: int | None = None,
        quick: bool = False,
        out: str | Path = "bench",
        json: bool = False,
    ):
        check_counts(rounds=rounds, threads=threads)
        if threads is not None and threads > processors.count():
            usable = f"{processors.count()} of this machine's processors{processors.why()}"
            raise UserError(f"--threads is {threads}: this process may use {usable}, use no more")
        self.name, self.device, self.threads, self.rounds = name, pick_device(device), threads, rounds
        self.quick, self.out, self.json = quick, expanded(out), json
        self.console = Console(stderr=json)
        self.machine = machine.describe(self.device, threads or torch.get_num_threads())
        used = self.machine["threads"]
        where = self.machine["gpu"] or self.machine["cpu"]
        self.where = f"{where}, {counted(used, 'thread')}"
        """For titles."""

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Check that the folder is writable (else ``ValueError``), print the machine, use the frame's threads."""
        report.check_folder(self.out)
        report.print_machine(self.console, self.machine)
        # clocks and memory counters are those of the current device
        with harness.threads(self.threads), computing_on(self.device):
            yield

    def say(self, text: str) -> None:
        """Print a line of text."""
        self.console.print(text)

    def compare(self, label: str, peers: Sequence[Peer], **settings) -> Comparison:
        """Check the peers, time the right ones in turns, and print the table; ``settings`` as in :func:`measure`."""
        assert self.rounds is not None  # a benchmark that compares has the flag, with a default
        comparison = harness.measure(label, peers, device=self.device, rounds=self.rounds, **settings)
        report.print_comparison(self.console, comparison)
        return comparison

    def plot_bars(self, comparisons: Sequence[Comparison], title: str) -> None:
        """Draw every peer's time as ``NAME.png``."""
        report.plot_bars(self.out / f"{self.name}.png", comparisons, f"{title}, {self.where}")

    def write(
        self,
        comparisons: Sequence[Comparison],
        *,
        marks: Sequence[report.Mark] = (),
        settings: Mapping[str, object],
        answer: Mapping[str, object] | None = None,
    ) -> str:
        """Write ``NAME.json`` and ``NAME.csv``; returns the JSON. ``answer`` is the result, such as a ``speedup``."""
        rounds = {} if self.rounds is None else {"rounds": self.rounds}
        record = {
            "benchmark": self.name,
            **(answer or {}),
            "machine": self.machine,
            "settings": {**settings, "device": str(self.device), **rounds, "quick": self.quick},
        }
        return report.write(self.out, self.name, record, comparisons, marks)

    def conclude(
        self,
        comparisons: Sequence[Comparison],
        *,
        marks: Sequence[report.Mark] = (),
        settings: Mapping[str, object],
        answer: Mapping[str, object] | None = None,
    ) -> int:
        """:meth:`write`, and print the marks; the exit status, 1 if any check failed."""
        text = self.write(comparisons, marks=marks, settings=settings, answer=answer)
        if marks:
            report.print_marks(self.console, marks)
        self.say(f"JSON, CSV and plots are in {self.out}")
        if self.json:
            Console().result(text)
        return 1 if any(comparison.failures for comparison in comparisons) else 0


def check_counts(**counts: int | None) -> None:
    """``ValueError`` if a flag is given and below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}: must be at least 1")


def check_value(flag: str, value: str, known: Sequence[str]) -> None:
    """``ValueError`` if a flag's value is not one of ``known``."""
    if value not in known:
        raise unknown(f"value of --{flag}", value, known)


def missing_compiler(compiled: str) -> str | None:
    """Why ``torch.compile`` cannot be timed, or None if it can.

    Raises:
        ValueError: ``compiled`` is not on, off or auto, or it is on and there is no compiler.
    """
    check_value("compiled", compiled, ("on", "off", "auto"))
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is not None:
        return None
    if compiled == "on":
        raise UserError(f"--compiled is on, but there is no C++ compiler ({compiler}): install g++")
    return f"no C++ compiler ({compiler})"
