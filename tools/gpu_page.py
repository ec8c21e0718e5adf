"""The page of a run of tools/gpu_check.py, in Markdown: marks first, then what each stage found."""

from collections.abc import Iterator
from typing import Any

FINE = ("passed", "skipped")
# mark -> the benchmark's label, its own mark, where (a part of that text), and the bound
COPY, BF16, F32, COMPILED = "fused over copy", "bfloat16 captured", "float32 captured", "step-resnet50-compiled"
MARKS = (
    ("loss over a device copy, K = 1,000", "loss-bfloat16", COPY, f"3x32768x1000 {BF16}", "<=", 1.4),
    ("loss over a device copy, K = 4,096", "loss-bfloat16", COPY, f"3x8192x4096 {BF16}", "<=", 1.2),
    ("loss over a device copy, K = 21,841", "loss-bfloat16", COPY, f"3x2048x21841 {BF16}", "<=", 1.2),
    ("the same, float32, K = 1,000", "loss-float32", COPY, f"3x32768x1000 {F32}", "<=", 1.4),
    ("the same, float32, K = 4,096", "loss-float32", COPY, f"3x8192x4096 {F32}", "<=", 1.2),
    ("torch.compile over the loss", "loss-compiled", "compiled loops over fused", f"3x32768x1000 {BF16}", ">=", 1),
    ("ResNet-50, eager reference over compiled", COMPILED, "reference over fastdhm", "resnet50", ">=", 4),
    ("the same with CUDA graphs", COMPILED, "reference over graphed", "resnet50", ">=", 4),
    ("ResNet-50, DHM over baseline", "step-resnet50", "fastdhm over baseline", "resnet50", "<=", 2.03),
)


def outcome(found: dict) -> str:
    """How a stage ended, from its commands."""
    commands = found["commands"]
    if "error" in found or any(taken["status"] and not taken["timed_out"] for taken in commands):
        return "failed"
    return "out of time" if any(taken["timed_out"] for taken in commands) else "passed"


def marks(record: dict) -> Iterator[tuple[str, float | None, str]]:
    """Each mark: its name with its bound, the measured value, and whether the bound holds."""
    results: dict[str, Any] = {}
    for found in record["stages"].values():
        results |= found.get("results", {})
    for name, label, asked, where, sign, bound in MARKS:
        given = results.get(label, {}).get("marks", [])
        value = next((m["value"]["median"] for m in given if m["name"] == asked and where in m["where"]), None)
        holds = value is not None and (value <= bound if sign == "<=" else value >= bound)
        told = "not run" if value is None else "holds" if holds else "MISSED"
        yield f"{name} {sign} {bound:g}", value, told


def page(record: dict) -> str:
    """The whole page; while the run goes on, the part that exists."""
    machine, lines = record["machine"], ["# fastdhm on a GPU: one prepared run", ""]
    if machine["device"] == "cpu":
        lines += ["**A rehearsal on the CPU, on tiny sizes: nothing here tells of a GPU.**", ""]
    lines += table(["", ""], [[name, flat(value)] for name, value in machine.items() if value is not None])
    if record["missing"]:
        lines += ["", f"Missing on this machine: {', '.join(record['missing'])}."]
    rows = [
        [
            name,
            found["title"],
            found.get("outcome", "under way"),
            f"{found.get('seconds', '')} of {found['limit_seconds']}",
        ]
        for name, found in record["stages"].items()
    ]
    lines += ["", *table(["stage", "", "outcome", "seconds"], rows)]
    if machine["device"] != "cpu":
        told = [[name, "" if value is None else f"{value:.3g}", how] for name, value, how in marks(record)]
        lines += ["", "## Marks", "", *table(["mark", "measured", ""], told)]
    for name, found in record["stages"].items():
        lines += ["", f"## {name}", "", *stage_lines(found)]
    return "\n".join(lines) + "\n"


def stage_lines(found: dict) -> Iterator[str]:
    """The results of a stage, and the end of the output of its failed commands."""
    if "error" in found:
        yield f"Broke: {flat(found['error'])}"
    yield from (f"- {flat(note)}" for note in found.get("notes", []))
    yield from (f"- {name}: {flat(value)}" for name, value in found.get("figures", {}).items())
    yield from (f"- FAILED {name}" for name in found.get("failures", []))
    for label, result in found.get("results", {}).items():
        yield from ("", f"### {label}", "")
        for comparison in result["comparisons"]:
            peers = comparison["peers"].items()
            cells = [
                [name, time_of(peer), cell(peer.get("peak_mib")), peer.get("failure") or ""] for name, peer in peers
            ]
            yield from (f"{comparison['label']}", "", *table(["peer", "ms (quartiles)", "MiB", ""], cells), "")
        told = [[m["name"], m["where"], f"{cell(m['value']['median'])} {m.get('unit', '')}"] for m in result["marks"]]
        yield from table(["mark", "where", ""], told)
        for profiled in result.get("steps", []):
            yield from ("", *profile(profiled))
    if found.get("kernels"):
        names = list(found["kernels"][0])
        yield from ("", *table(names, [[row.get(name, "") for name in names] for row in found["kernels"]]))
    for taken in found["commands"]:
        how = "out of time" if taken["timed_out"] else f"status {taken['status']}"
        if taken["timed_out"] or taken["status"]:
            yield from (
                "",
                f"`{flat(taken['command'])}`: {how} after {taken['seconds']} s",
                "",
                "```",
                taken["tail"],
                "```",
            )


def profile(step: dict) -> list[str]:
    """Where a step's time goes, in shares by kind of work."""
    spent = step["profile_ms"]
    kinds = list(next(iter(spent.values()), {}))
    rows = [[kind, *(f"{parts[kind] / sum(parts.values()):.0%}" for parts in spent.values())] for kind in kinds]
    return table([f"share of a step, {step['label']}", *spent], rows)


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    return ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]


def time_of(peer: dict) -> str:
    """Milliseconds of a call with their quartiles."""
    if not peer.get("median_ms"):
        return "no time"
    return f"{cell(peer['median_ms'])} ({cell(peer['low_ms'])}-{cell(peer['high_ms'])})"


def cell(value: float | None) -> str:
    """A number as text."""
    return "" if value is None else f"{value:.4g}"


def flat(value: object) -> str:
    """Text for one cell of a table."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {cell(item) if isinstance(item, float) else item}" for name, item in value.items())
    value = ", ".join(map(str, value)) if isinstance(value, list) else value
    return " ".join(str(value).split()).replace("|", "/")
