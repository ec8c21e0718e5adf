"""``fastdhm doctor``: what this machine has, what fastdhm uses of it, and whether the ops are correct here."""

import dataclasses
import json
from pathlib import Path

from rich.text import Text

from fastdhm import __version__
from fastdhm.commands.doctor import machine, software
from fastdhm.commands.doctor.machine import Fact
from fastdhm.commands.doctor.self_test import Check, self_test
from fastdhm.engine.device import pick_device
from fastdhm.system.console import Console

NAME_WIDTH = 17
NOTHING_COMPILED = Fact("ops", "none is compiled here: torch's own operations do all the work")


def doctor(data_dir: Path, *, as_json: bool = False) -> int:
    """Print the report, a page to read or to paste; the exit status is 1 if an op gives a wrong result, else 0."""
    sections = {
        "machine": machine.hardware,
        "software": software.software,
        "folders": lambda: machine.folders(data_dir),
        "a run takes": machine.choices,
        "self-test": lambda: [_as_fact(check) for check in self_test(pick_device("auto"))] or [NOTHING_COMPILED],
    }
    console, report = Console(), {}
    if not as_json:
        console.result(f"fastdhm {__version__}")
    for title, ask in sections.items():
        report[title] = ask()
        if not as_json:
            console.result(Text(f"\n{title}", style="bold"))
            for fact in report[title]:
                console.result(f"  {fact.name:<{NAME_WIDTH}} {fact.text}")
    wrong = [fact for fact in report["self-test"] if fact.advice]
    if as_json:
        console.result(json.dumps({"fastdhm": __version__, **{name: _plain(facts) for name, facts in report.items()}}))
        return int(bool(wrong))
    advice = list(
        dict.fromkeys(f"{fact.name}: {fact.advice}" for facts in report.values() for fact in facts if fact.advice)
    )
    console.result(Text("\nto do" if advice else "\nnothing to do", style="bold"))
    for line in advice:
        console.result(f"  {line}")
    return int(bool(wrong))


def _as_fact(check: Check) -> Fact:
    kind = str(check.dtype).removeprefix("torch.")
    verdict, found = "right" if check.passed else "WRONG", check.failure or f"off by {check.error:.1e}"
    advice = None if check.passed else "it is wrong here: train with --impl eager, and report this page"
    return Fact(check.op, f"{verdict}  {check.form}, {kind}: {found}, {check.milliseconds:.1f} ms", advice)


def _plain(facts: list[Fact]) -> list[dict[str, str | None]]:
    return [dataclasses.asdict(fact) for fact in facts]
