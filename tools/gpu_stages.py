"""What the stages of tools/gpu_check.py do: each gets the run, its seconds, and a dictionary to fill."""

import csv
import hashlib
import importlib.util
import json
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
# First what only a GPU can test, then the quick tests.
TESTS_FIRST = (
    "tests/kernels/test_mimic_loss_cuda.py", "tests/cuda/test_branch_mask.py", "tests/data/loaders/test_ahead.py",
    "tests/engine/fast/test_graphs.py", "tests/engine/test_host_waits.py",
)  # fmt: skip
MOST_WORKERS = 8  # each has a context of its own on the GPU
CHECK_EXTENSION = (
    "import json; from fastdhm.ops import _extension as e; "
    "print(json.dumps([e.reason(), None if e.reason() else e.require('this').build_info()]))"
)
CAPABILITY = "import torch; print('.'.join(map(str, torch.cuda.get_device_capability())))"
FASTDHM = ("-m", "fastdhm")
METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed", "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active", "smsp__inst_executed.sum", "launch__registers_per_thread",
)  # fmt: skip
COUNTED = """
import torch
from fastdhm.benchmarks.reference.loss_peers import Case
for shape in ((3, 32768, 1000), (3, 8192, 4096), (3, 2048, 21841)):
    case = Case(shape, "bfloat16", torch.device("cuda"))
    case.mimic("auto"), case.logits_MBK.detach().clone(), case.logits_MBK.detach().softmax(-1)
"""


def build(run, seconds: float, found: dict) -> None:
    """Use an extension that fits, else build one, with CUDA code for this GPU only."""
    package = run.tree / "fastdhm"
    for file in filter(None, (run.prebuilt, *sorted((ROOT / "fastdhm").glob(f"_C*{SUFFIX}")))):
        link(package, file)
        reason = why_no_extension(run, found, seconds)
        if reason is None:
            found["outcome"] = "passed"
            found["figures"] = {"extension": f"{file}, which was there"}
            return
        found.setdefault("notes", []).append(f"{file} does not fit: {reason}")
    environment = {"MAX_JOBS": str(len(os.sched_getaffinity(0)))}
    if run.device == "cuda":
        asked = run.python("capability", ["-c", CAPABILITY], seconds)
        environment["TORCH_CUDA_ARCH_LIST"] = asked["tail"].strip().splitlines()[-1]
    folders = ["--build-lib", run.work / "lib", "--build-temp", run.work / "temp"]
    settings = [f"{name}={value}" for name, value in environment.items()]
    python = run.executable
    found["commands"].append(
        run.command("build", ["env", *settings, python, "setup.py", "build_ext", *folders], seconds)
    )
    for file in (run.work / "lib" / "fastdhm").glob(f"_C*{SUFFIX}"):
        link(package, file)
    reason = why_no_extension(run, found, 30)
    found["figures"] = {"extension": reason or f"built for {environment}"}
    found["outcome"] = "failed" if reason else "passed"


def link(package: Path, file: Path) -> None:
    """Make the package use that extension."""
    for old in package.glob("_C*.so"):
        old.unlink()
    (package / f"_C{SUFFIX}").symlink_to(file.resolve())


def why_no_extension(run, found: dict, seconds: float) -> str | None:
    """Why the extension that is linked cannot be used on the run's device, or None."""
    check = run.python("extension", ["-c", CHECK_EXTENSION], min(seconds, 60))
    if check["status"] != 0:
        return check["tail"].strip().splitlines()[-1]
    reason, info = json.loads(check["tail"].strip().splitlines()[-1])
    found["build_info"] = info
    if reason is None and run.device == "cuda" and not info["cuda"]:
        return "it has no CUDA code"
    return reason


def right(run, seconds: float, found: dict) -> None:
    """Run the tests marked gpu, in parallel if pytest-xdist is installed; a rehearsal runs a few others."""
    words = ["-m", "pytest", "-v", "--no-header", "-p", "no:cacheprovider"]
    if run.device == "cuda":
        words += ["-m", "gpu"]
        workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)) // 2)
        words += ["-n", str(workers)] if importlib.util.find_spec("xdist") and workers > 1 else []
        files = gpu_tests()
    else:
        files = [TESTS_FIRST[0], "tests/ops/test_philox.py"]
    taken = run.python("tests", [*words, *files], seconds)
    found["commands"].append(taken)
    counts, bad = count_tests(Path(taken["log"]).read_text(errors="replace"))
    found["tests"], found["failures"] = counts, bad
    found["figures"] = {"tests": ", ".join(f"{number} {how}" for how, number in counts.items()) or "none ran"}


def gpu_tests() -> list[str]:
    """The files with tests marked gpu, the most valuable first."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    names = [str(path.relative_to(ROOT)) for path in marked]
    return [name for name in TESTS_FIRST if name in names] + [name for name in names if name not in TESTS_FIRST]


def count_tests(log: str) -> tuple[dict[str, int], list[str]]:
    """The number of tests per outcome, and the names of those that failed, from the output of ``pytest -v`` so far."""
    counts: Counter[str] = Counter()
    bad = []
    for line in log.partition("short test summary")[0].splitlines():
        if ended := re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b", line):
            counts[ended[1].lower()] += 1
            name = re.search(r"tests/\S+", line)
            bad += [name[0]] if name and ended[1] in ("FAILED", "ERROR") else []
    return dict(counts), bad


def loss(run, seconds: float, found: dict) -> None:
    """Time and bandwidth of the loss in both usual types, then against torch.compile."""
    if run.device == "cpu":
        benches(run, seconds, found, [("loss-quick", 1, ["loss", "--quick", "--device", "cpu"])])
        return
    usual = ["loss", "--device", "cuda", "--rounds", "15"]
    shapes = ["--shape", "3x32768x1000", "--shape", "3x8192x4096"]
    benches(run, seconds, found, [
        ("loss-bfloat16", 4, [*usual, "--dtype", "bfloat16", "--compiled", "off"]),
        ("loss-float32", 3, [*usual, "--dtype", "float32", "--compiled", "off"]),
        ("loss-compiled", 3, [*usual, "--dtype", "bfloat16", "--compiled", "on", *shapes]),
    ])  # fmt: skip


def step(run, seconds: float, found: dict) -> None:
    """A whole training step: as it is and as a CUDA graph, then compiled."""
    if run.device == "cpu":
        peers = ["--peers", "reference,baseline"]
        benches(run, seconds, found, [("step-quick", 1, ["step", "--quick", "--device", "cpu", *peers])])
        return
    usual = ["step", "--device", "cuda", "--rounds", "7"]
    networks = {
        "resnet32": [*usual, "--arch", "resnet32", "--batch-size", "512"],
        "resnet50": [*usual, "--arch", "resnet50", "--batch-size", "256"],
    }
    compiled = ["--compile", "on", "--peers", "graphed,reference"]
    benches(run, seconds, found, [
        ("step-resnet32", 2, networks["resnet32"]),
        ("step-resnet50", 3, networks["resnet50"]),
        ("step-resnet50-compiled", 5, [*networks["resnet50"], *compiled]),
        ("step-resnet32-compiled", 4, [*networks["resnet32"], *compiled]),
    ])  # fmt: skip


def benches(run, seconds: float, found: dict, planned: Sequence[tuple[str, float, list[str]]]) -> None:
    """Run benchmarks one by one, each in its share of the time left, and read their JSON."""
    end = run.left() - seconds
    for number, (label, share, words) in enumerate(planned):
        limit = (run.left() - end) * share / sum(later[1] for later in planned[number:])
        folder = run.work / "results" / label
        found["commands"].append(run.python(label, [*FASTDHM, "bench", *words, "--out", folder], limit))
        file = folder / f"{words[0]}.json"
        if file.exists():
            found.setdefault("results", {})[label] = json.loads(file.read_text())
        run.save()


def train(run, seconds: float, found: dict) -> None:
    """Short runs in each precision and launch mode, and one that is killed and must resume to the same bits."""
    end = run.left() - seconds
    gpu = run.device == "cuda"
    size = "--dataset synthetic:20000 --arch resnet14 --batch-size 256 --epochs 3"
    if not gpu:
        size = "--dataset synthetic:512 --arch resnet8 --batch-size 32 --epochs 1"
    usual = [*size.split(), "--loader", "resident", "--log-every", "2", "--device", run.device]
    eager = ["--compile", "off", "--precision"]
    ways = {
        "whole": [*eager, "float32", "--deterministic", "true"],
        "killed": [*eager, "float32", "--deterministic", "true"],
        "bfloat16-graphs": [*eager, "bfloat16", "--cuda-graphs", "true"],
        "float16": [*eager, "float16"],
        "compiled": ["--compile", "on", "--precision", "bfloat16", "--deterministic", "true"],
        "compiled-beside": ["--compile", "on", "--precision", "bfloat16", "--epochs", "30"],
    }
    for name, words in ways.items() if gpu else list(ways.items())[:2]:
        folder = run.work / "results" / f"train-{name}"
        command = [*FASTDHM, "train", *usual, *words, "--run-dir", folder]
        kill = (lambda folder=folder: len(rows(folder, "step")) >= 3) if name == "killed" else None
        taken = run.python(f"train-{name}", command, run.left() - end, kill=kill)
        if kill:
            again = run.python("train-resumed", [*FASTDHM, "train", "--resume", folder], run.left() - end)
            taken = again | {"killed": taken["killed"]}
        found["commands"].append(taken)
        found.setdefault("figures", {})[name] = figures(folder)
        run.save()
    prints = [fingerprint(run.work / "results" / f"train-{name}") for name in ("whole", "killed")]
    alike = prints[0] is not None and prints[0] == prints[1]
    found["figures"]["killed and resumed"] = "the same bits" if alike else "OTHER BITS, or no result"
    if not alike:
        found["outcome"] = "failed"


def rows(folder: Path, kind: str) -> list[dict]:
    """The complete rows of a kind in a run's log, which may still be written."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [row for row in map(json.loads, (line for line in lines if line.endswith("\n"))) if row["kind"] == kind]


def figures(folder: Path) -> dict[str, object]:
    """The result of a run: the numbers of its last epoch, and when it compiled."""
    last = (rows(folder, "epoch") or [{}])[-1]
    names = ("step", "loss", "images_per_s", "data_wait", "peak_mib")
    told = {name: last[name] for name in names if name in last}
    told |= {name: value for name, value in last.items() if name.endswith("_error/B0")}
    for row in rows(folder, "startup")[:1]:
        told["startup_seconds"] = row["startup_seconds"]
    for row in rows(folder, "compile"):
        told |= {"compiled at step": row["step"], "compiled in seconds": row["ahead_seconds"]}
    return told


def fingerprint(folder: Path) -> str | None:
    """A fingerprint of the network that a run saved."""
    file = folder / "network.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def counters(run, seconds: float, found: dict) -> None:
    """Nsight Compute's figures for the loss, a copy and a softmax, if it is installed; clocks do not change."""
    ncu = run.which("ncu")
    if run.device == "cpu" or ncu is None:
        found["outcome"] = "skipped"
        found["notes"] = ["there is no GPU" if run.device == "cpu" else "there is no ncu"]
        return
    chosen = ["--kernel-name", "regex:mimic|scale|softmax|copy|elementwise", "--metrics", ",".join(METRICS)]
    words = [ncu, "--clock-control", "none", "--csv", "--page", "raw", *chosen, run.executable, "-c", COUNTED]
    taken = run.command("ncu", words, seconds)
    found["commands"].append(taken)
    found["kernels"] = read_counters(Path(taken["log"]).read_text(errors="replace"))


def read_counters(log: str) -> list[dict[str, str]]:
    """The kernels in the output of ``ncu --csv --page raw``, after a line of names and one of units."""
    lines = log.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    table = list(csv.DictReader(line for line in lines[first:] if line.startswith('"')))
    units, kernels = (table or [{}])[0], table[1:]
    titles = {name: f"{name} [{unit}]" if unit else name for name, unit in units.items() if name in METRICS}
    return [{"kernel": row["Kernel Name"], **{titles[name]: row[name] for name in titles}} for row in kernels]
