"""What a benchmark prints and writes: tables, one JSON object, CSV and plots."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fastdhm.benchmarks.harness.machine import busy
from fastdhm.benchmarks.harness.timing import Comparison, Spread
from fastdhm.errors import UserError
from fastdhm.system.console import Console
from fastdhm.system.files import write_csv, write_text
from fastdhm.system.plotting import save_figure

CSV_COLUMNS = (
    "comparison", "peer", "median_ms", "low_ms", "high_ms", "ratio", "ratio_low", "ratio_high", "rounds",
    "calls_per_sample", "peak_mib", "failure",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One number that answers a question, where it was measured, and its unit (``x`` or ``%``)."""

    name: str
    where: str
    value: Spread
    unit: str = "x"


def check_folder(folder: Path) -> None:
    """Make ``folder``; ``ValueError`` if it is not writable, before anything is measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--out is {folder}: cannot write there ({error.strerror}); name another folder") from error


def print_machine(console: Console, machine: dict[str, Any]) -> None:
    """Hardware and versions in two lines, and a warning if the machine is busy."""
    features = " ".join(machine["features"])
    console.print(
        f"{machine['cpu']} ({features}), {machine['processors']} processors, {machine['threads']} used",
    )
    gpu = f", {machine['gpu']} (CUDA {machine['cuda']})" if machine["gpu"] else ""
    console.print(
        f"torch {machine['torch']}, Python {machine['python']}, fastdhm {machine['fastdhm']} "
        f"(C++ extension: {machine['extension']}), load average {machine['load_average']}{gpu}",
    )
    warning = busy(machine["load_average"], machine["processors"], machine["threads"])
    if warning:
        console.print(f"warning: {warning}", style="yellow")


def print_comparison(console: Console, comparison: Comparison) -> None:
    """A row for each peer; one that failed its check shows why and has no numbers."""
    first = next(iter(comparison.results))
    rounds = max(len(result.samples_ms) for result in comparison.results.values())
    title = f"{comparison.label}: {rounds} rounds, ratio to {first}, peak MiB beyond the inputs"
    console.print(f"\n{title}")
    table = _table(left=["peer"], right=["time", "quartiles", "ratio", "quartiles", "MiB"])
    for name, result in comparison.results.items():
        time_ms, ratio = comparison.time_ms(name), comparison.ratio(name, first)
        if time_ms is None:
            table.add_row(name, "no time", style="red")
            continue
        ratios = (_number(ratio.median), _quartiles(ratio)) if ratio else ("", "")  # none if the first peer failed
        row = (*_in_unit(time_ms), *ratios, "" if result.peak_mib is None else f"{result.peak_mib:.2f}")
        table.add_row(name, *row, style="bold" if name == first else "")
    console.print(table)
    for name, reason in comparison.failures.items():
        console.print(f"{name}: WRONG, so not timed: {reason}", style="red")


def print_rows(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column names its rows."""
    console.print(f"\n{title}")
    table = _table(left=columns[:1], right=columns[1:])
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_marks(console: Console, marks: Sequence[Mark]) -> None:
    """The numbers that answer the benchmark's questions."""
    table = _table(left=["mark", "where"], right=["value", "quartiles"])
    for mark in marks:
        table.add_row(mark.name, mark.where, f"{_number(mark.value.median)} {mark.unit}", _quartiles(mark.value))
    console.print("")
    console.print(table)


def ratio_marks(comparisons: Sequence[Comparison], pairs: dict[str, tuple[str, str]]) -> list[Mark]:
    """A mark for each of ``pairs``, name -> (peer, peer to divide by), if both have a time."""
    found = [(name, c.label, c.ratio(*pair)) for c in comparisons for name, pair in pairs.items()]
    return [Mark(name=name, where=where, value=ratio) for name, where, ratio in found if ratio]


def write(
    folder: Path, name: str, record: dict[str, object], comparisons: Sequence[Comparison], marks: Sequence[Mark]
) -> str:
    """Write ``folder/name.json`` (``record``, comparisons and marks) and ``folder/name.csv``; returns the JSON."""
    record = {
        **record,
        "comparisons": [_record(comparison) for comparison in comparisons],
        "marks": [dataclasses.asdict(mark) for mark in marks],
    }
    text = json.dumps(record, indent=2)
    write_text(folder / f"{name}.json", text + "\n")
    rows = (row for comparison in comparisons for row in _rows(comparison))
    write_csv(folder / f"{name}.csv", CSV_COLUMNS, rows)
    return text


def plot_bars(path: Path, comparisons: Sequence[Comparison], title: str) -> None:
    """Draw the time of every peer, a group of bars per comparison; PNG."""
    figure, axes = _axes(title, "milliseconds a call", width=max(7, 2 * len(comparisons)))
    names = list(dict.fromkeys(name for comparison in comparisons for name in comparison.results))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        found = [(place, comparison.time_ms(name)) for place, comparison in enumerate(comparisons)]
        times = [(place, time_ms) for place, time_ms in found if time_ms]
        places = [place - 0.4 + (index + 0.5) * width for place, _ in times]
        axes.bar(places, [time_ms.median for _, time_ms in times], width, label=name)
    _log_plain(axes)
    axes.set_xticks(range(len(comparisons)), [comparison.label.replace(" ", "\n") for comparison in comparisons])
    axes.grid(axis="x", visible=False)
    _save(figure, axes, path)


def plot_stacks(path: Path, stacks: dict[str, dict[str, float]], title: str, y_label: str) -> None:
    """Draw a bar for each of ``stacks``, made of named parts; PNG."""
    figure, axes = _axes(title, y_label, width=max(7, 1.6 * len(stacks)))
    bottoms = dict.fromkeys(stacks, 0.0)
    for part in dict.fromkeys(part for parts in stacks.values() for part in parts):
        heights = [parts.get(part, 0.0) for parts in stacks.values()]
        axes.bar(range(len(stacks)), heights, 0.6, bottom=list(bottoms.values()), label=part)
        bottoms = {name: bottom + height for (name, bottom), height in zip(bottoms.items(), heights, strict=True)}
    axes.set_xticks(range(len(stacks)), [name.replace(" ", "\n") for name in stacks])
    axes.grid(axis="x", visible=False)
    _save(figure, axes, path)


def plot_curves(path: Path, curves: Mapping[str, Sequence[float]], title: str, x_label: str, y_label: str) -> None:
    """Draw values in order, a line per name; PNG."""
    figure, axes = _axes(title, y_label)
    for number, (name, values) in enumerate(curves.items()):
        style = ("-", "--", ":", "-.")[number % 4]  # so that lines on top of each other stay visible
        axes.plot(range(1, len(values) + 1), values, style, label=name)
    axes.set_xlabel(x_label)
    _save(figure, axes, path)


def plot_ways(
    path: Path,
    ways: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
    target: float,
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Draw several curves per name in one colour, and the target; PNG."""
    figure, axes = _axes(title, y_label)
    for number, (name, curves) in enumerate(ways.items()):
        for first, (x, y) in zip((True, *[False] * len(curves)), curves, strict=False):
            axes.plot(x, y, marker=".", color=f"C{number}", label=name if first else None)
    axes.axhline(target, color="0.4", linestyle="--", linewidth=1, label=f"target {target:g}")
    axes.set_xscale("log")
    axes.set_xlabel(x_label)
    _save(figure, axes, path)


def plot_lines(path: Path, comparisons: dict[int, Comparison], title: str, x_label: str) -> None:
    """Time of every peer over a number that the comparisons differ in, quartiles shaded, both axes logarithmic; PNG."""
    figure, axes = _axes(title, "milliseconds a call")
    for name in dict.fromkeys(name for comparison in comparisons.values() for name in comparison.results):
        found = {x: comparison.time_ms(name) for x, comparison in comparisons.items()}
        times = {x: time_ms for x, time_ms in found.items() if time_ms}
        axes.plot(list(times), [time_ms.median for time_ms in times.values()], marker="o", label=name)
        lows, highs = ([getattr(time_ms, side) for time_ms in times.values()] for side in ("low", "high"))
        axes.fill_between(list(times), lows, highs, alpha=0.2)
    axes.set_xscale("log")
    _log_plain(axes)
    axes.set_xticks(list(comparisons), [str(x) for x in comparisons])
    axes.minorticks_off()
    axes.set_xlabel(x_label)
    _save(figure, axes, path)


def plot_rates(
    path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], title: str, x_label: str, y_label: str
) -> None:
    """Draw a rate over a count, a line per name, both axes logarithmic; PNG."""
    figure, axes = _axes(title, y_label)
    for number, (name, points) in enumerate(curves.items()):
        axes.plot(
            *zip(*points, strict=True), marker="o", color=f"C{number // 2}", ls=("-", "--")[number % 2], label=name
        )
    axes.set_xscale("log")
    _log_plain(axes)
    counts = sorted({count for points in curves.values() for count, _ in points})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(x_label)
    _save(figure, axes, path)


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    """A table that fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in left:
        table.add_column(column)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _axes(title: str, y_label: str, width: float = 7):
    from matplotlib.figure import Figure  # slow to load, and only plots need it

    figure = Figure(figsize=(width, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _log_plain(axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _save(figure, axes, path: Path) -> None:
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path, dpi=150)


def _in_unit(time_ms: Spread) -> tuple[str, str]:
    """Median and quartiles as text, short times in microseconds."""
    scale, unit = (1e3, "µs") if time_ms.median < 0.1 else (1, "ms")
    scaled = Spread(*(scale * value for value in dataclasses.astuple(time_ms)))
    return f"{_number(scaled.median)} {unit}", _quartiles(scaled)


def _quartiles(spread: Spread) -> str:
    if spread.low == spread.high:  # always the same: memory, or the first peer over itself
        return ""
    return f"{_number(spread.low)} - {_number(spread.high)}"


def _number(value: float) -> str:
    """Three digits; more only before the decimal point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A CSV row for each peer; the numbers are empty for a peer without a time."""
    first = next(iter(comparison.results))
    rows = []
    for name, result in comparison.results.items():
        row: dict[str, Any] = {"comparison": comparison.label, "peer": name, "failure": result.failure}
        time_ms, ratio = comparison.time_ms(name), comparison.ratio(name, first)
        if time_ms:
            row |= {"median_ms": time_ms.median, "low_ms": time_ms.low, "high_ms": time_ms.high}
            row |= {"rounds": len(result.samples_ms), "calls_per_sample": result.calls_per_sample}
            row |= {"peak_mib": result.peak_mib}
        if ratio:
            row |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
        rows.append(row)
    return rows


def _record(comparison: Comparison) -> dict[str, object]:
    """The comparison for JSON: each peer's time, memory, and ratio to every other peer."""
    peers = {}
    for row in _rows(comparison):
        name = row.pop("peer")
        ratios = {other: comparison.ratio(name, other) for other in comparison.results if other != name}
        kept = {key: value for key, value in row.items() if key != "comparison" and not key.startswith("ratio")}
        over = {other: dataclasses.asdict(ratio) for other, ratio in ratios.items() if ratio}
        peers[name] = kept | {"time_over": over}
    return {"label": comparison.label, "peers": peers}
