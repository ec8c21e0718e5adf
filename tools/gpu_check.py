"""One prepared run on a GPU: builds, tests, times and trains, and writes what it saw to a page.

The most valuable stages run first, each with a time limit. Results are written as soon as a stage has them, and a
stage that fails does not stop the next ones. Unused time goes to later stages. Nothing is installed or downloaded: the
run uses the machine's own Python and torch. The repository is linked into the folder build/gpu_check, where the
extension is built and everything runs.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import gpu_page
import gpu_stages

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "torch", "torchvision", "numpy", "PIL", "jsonargparse", "docstring_parser", "typeshed_client", "rich",
    "tensorboard", "safetensors", "yaml", "matplotlib", "scipy", "pytest", "hypothesis", "setuptools",
)  # fmt: skip
POLL_SECONDS = 0.02
HEAVY = (".pt", ".safetensors")  # not sent
GRACE_SECONDS = 3  # between asking a process to end and ending it
WHEELS = """\
What python3 lacks can travel as wheels. On a machine with a network, for the other's Python (here 3.12):

  python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d WHEELS \\
      jsonargparse docstring-parser typeshed-client

Carry the folder along and name it: --wheels WHEELS. They are unpacked into build/gpu_check, and nothing is installed.
The run itself begins by naming what is missing.
"""


@dataclass
class Run:
    """A run: its folders, its device and its end."""

    device: str
    out: Path
    work: Path
    minutes: float
    started: float = field(default_factory=time.monotonic)
    environment: dict[str, str] = field(default_factory=dict)
    prebuilt: Path | None = None
    record: dict = field(default_factory=dict)

    def left(self) -> float:
        """Seconds left of the run's time."""
        return 60 * self.minutes - (time.monotonic() - self.started)

    @property
    def tree(self) -> Path:
        """The repository as it is run."""
        return self.work / "tree"

    @property
    def executable(self) -> str:
        """The Python of all commands: the one that runs this file."""
        return sys.executable

    def which(self, name: str) -> str | None:
        """The path of a program, or None."""
        return shutil.which(name)

    def save(self) -> None:
        """Write the page as it stands."""
        write(self)

    def command(
        self, label: str, words: Sequence[str | Path], seconds: float, kill: Callable[[], bool] | None = None
    ) -> dict:
        """Run a command with a time limit; returns how it ended and the end of its output; all output is logged.

        It is killed, as if the machine failed, once ``kill`` returns true.
        """
        parts, began = [str(word) for word in words], time.monotonic()
        log = self.work / "logs" / f"{label}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as file:
            process = subprocess.Popen(
                parts, cwd=self.tree, env=os.environ | self.environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            how = watch(process, max(1.0, seconds), kill)
        text = log.read_text(errors="replace")
        with open(self.out / "log.txt", "a") as whole:
            whole.write(f"\n$ {' '.join(parts)}\n{text}")
        return {
            "label": label, "command": " ".join(parts), "status": process.returncode, "timed_out": how == "late",
            "killed": how == "killed", "seconds": round(time.monotonic() - began, 1), "tail": text[-1500:],
            "log": str(log),
        }  # fmt: skip

    def python(self, label: str, words: Sequence[str | Path], seconds: float, **options) -> dict:
        """:meth:`command` of this Python."""
        return self.command(label, [self.executable, *words], seconds, **options)


def watch(process: subprocess.Popen, seconds: float, kill: Callable[[], bool] | None) -> str:
    """Wait for a process: it ends by itself (``done``), is ``late`` or ``killed``; its children end with it."""
    end, how = time.monotonic() + seconds, "done"
    while how == "done" and process.poll() is None:
        time.sleep(POLL_SECONDS)
        how = "late" if time.monotonic() > end else "killed" if kill and kill() else "done"
    with suppress(ProcessLookupError):
        if how == "late":
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return how


@dataclass(frozen=True)
class Stage:
    """A part of the run: ``does`` gets the run and its seconds, and records results as it finds them."""

    name: str
    title: str
    weight: float
    does: Callable[[Run, float, dict], None]


STAGES = (
    Stage("build", "the extension, for this GPU alone", 130, gpu_stages.build),
    Stage("right", "the tests that need a GPU", 110, gpu_stages.right),
    Stage("loss", "the loss against a device copy and its peers", 90, gpu_stages.loss),
    Stage("step", "the training step against the eager reference", 120, gpu_stages.step),
    Stage("train", "short trainings, a kill and a resume", 60, gpu_stages.train),
    Stage("counters", "what ncu counts of the loss", 20, gpu_stages.counters),
)


def take(run: Run, stages: Sequence[Stage], say: Callable[[str], None]) -> None:
    """Run every stage in its share of the time left; the page is written again after each."""
    for number, stage in enumerate(stages):
        seconds = max(1.0, run.left()) * stage.weight / sum(later.weight for later in stages[number:])
        found = run.record["stages"][stage.name] = {
            "title": stage.title,
            "limit_seconds": round(seconds),
            "commands": [],
        }
        say(f"{stage.name}: {stage.title}, {seconds:.0f} seconds at most")
        began = time.monotonic()
        try:
            stage.does(run, seconds, found)
        except Exception as error:  # whatever the error is, the next stage may still give results
            found["error"] = f"{type(error).__name__}: {error}"
        found["seconds"] = round(time.monotonic() - began, 1)
        found.setdefault("outcome", gpu_page.outcome(found))
        say(f"{stage.name}: {found['outcome']}, {found['seconds']} seconds")
        write(run)


def write(run: Run) -> None:
    """Write ``page.md``, ``page.json``, and ``details.tar.gz`` with everything else."""
    (run.out / "page.json").write_text(json.dumps(run.record, indent=1) + "\n")
    (run.out / "page.md").write_text(gpu_page.page(run.record))
    with tarfile.open(run.out / "details.tar.gz", "w:gz") as details:
        for name in ("logs", "results"):
            if (run.work / name).exists():
                details.add(run.work / name, name, filter=lambda file: None if file.name.endswith(HEAVY) else file)


def link_tree(tree: Path) -> None:
    """The repository as links, with the kernels and the benchmarks within the package, as an installation has them."""
    shutil.rmtree(tree, ignore_errors=True)
    package = tree / "fastdhm"
    package.mkdir(parents=True)
    for path in (*(ROOT / "fastdhm").iterdir(), ROOT / "kernels", ROOT / "benchmarks"):
        if path.suffix != ".so" and not path.is_symlink() and path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for path in ROOT.iterdir():
        if path.name not in ("fastdhm", "build") and not path.name.startswith("."):
            (tree / path.name).symlink_to(path)


def unpack(wheels: Path, site: Path) -> list[str]:
    """Unpack wheels to import from; their names."""
    found = sorted(wheels.glob("*.whl"))
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return [wheel.name for wheel in found]


def describe(run: Run) -> dict:
    """Machine, versions and settings, which every figure needs."""
    nvidia = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit,compute_cap"
    told = {
        "gpu": ["nvidia-smi", f"--query-gpu={nvidia}", "--format=csv"],
        "nvcc": ["nvcc", "--version"],
        "compiler": [os.environ.get("CXX", "c++"), "-dumpfullversion"],
        "commit": ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
    }
    program = (
        "import importlib.metadata as m, json, torch\n"
        "names = {d.metadata['Name'].lower(): d.version for d in m.distributions() if d.metadata['Name']}\n"
        "wanted = 'torch torchvision triton numpy ninja pytest pytest-xdist jsonargparse'.split()\n"
        "print(json.dumps({name: names.get(name) for name in wanted} | {'cuda': torch.version.cuda,"
        " 'cudnn': torch.backends.cudnn.version()}))"
    )
    versions = output([sys.executable, "-c", program], run.environment)
    return {
        "device": run.device, "minutes": run.minutes,
        "python": platform.python_version(), "system": platform.platform(),
        "processors": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()[0],
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **{name: (output(words, {}) or "").splitlines()[-2:] for name, words in told.items()},
        "versions": json.loads(versions.splitlines()[-1]) if versions else None,
    }  # fmt: skip


def output(words: Sequence[str], environment: dict[str, str]) -> str | None:
    """The output of a command, or None if it is missing or fails."""
    try:
        result = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def missing(environment: dict[str, str]) -> list[str]:
    """The needed modules that are missing."""
    program = f"import importlib.util as u; print(*(name for name in {NEEDED!r} if u.find_spec(name) is None))"
    return (output([sys.executable, "-c", program], environment) or "").split()


def why_not(device: str, environment: dict[str, str]) -> str | None:
    """Why nothing can run on this device, or None."""
    if device == "cpu":
        return None
    program = "import torch; print(torch.cuda.is_available(), torch.__version__)"
    seen = output([sys.executable, "-c", program], environment)
    if seen is None:
        return f"{sys.executable} cannot import torch: choose a Python that can, PYTHON=/path/to/python3 {sys.argv[0]}"
    available, version = seen.split()
    return None if available == "True" else f"torch {version} sees no CUDA device here: NOT RUN"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        prog="tools/gpu_check.sh", description=__doc__, epilog=WHEELS, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="time for all stages (default: 8)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal, on tiny sizes")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels of what python3 lacks, see below")
    parser.add_argument("--prebuilt", type=Path, metavar="FILE", help="an extension built for this torch: _C.*.so")
    parser.add_argument("--stages", default="", help=f"some of {','.join(stage.name for stage in STAGES)}")
    usual = Path(os.environ.get("OUT", "bench/gpu"))
    parser.add_argument("--out", type=Path, default=usual, help="folder for the page (default: $OUT, or bench/gpu)")
    given = parser.parse_args(argv)
    given.stages = given.stages.split(",") if given.stages else [stage.name for stage in STAGES]
    unknown = set(given.stages) - {stage.name for stage in STAGES}
    if unknown or not given.minutes > 0:
        parser.error(f"--stages has {', '.join(sorted(unknown))}" if unknown else "--minutes must be above 0")
    for folder in (given.wheels, given.prebuilt):
        if folder is not None and not folder.exists():
            parser.error(f"{folder} does not exist")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; returns 0 if all passed, 1 if some failed, 2 if nothing could run."""
    given = arguments(argv)
    work = ROOT / "build" / "gpu_check"
    for name in ("logs", "results", "wheels"):
        shutil.rmtree(work / name, ignore_errors=True)
    link_tree(work / "tree")
    wheels = unpack(given.wheels, work / "wheels") if given.wheels else []
    places = (str(work / "tree"), str(work / "wheels"), os.environ.get("PYTHONPATH"))
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "PYTHONDONTWRITEBYTECODE": "1",
        # shared compiler caches: later commands reuse the results of earlier ones
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "TRITON_CACHE_DIR": str(work / "triton"),
        "FASTDHM_DATA": str(work / "data"),
    }  # fmt: skip
    reason = why_not(given.device, environment)
    if reason:
        print(f"gpu_check: {reason}", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "log.txt").unlink(missing_ok=True)
    run = Run(given.device, given.out.resolve(), work, given.minutes, environment=environment, prebuilt=given.prebuilt)
    absent = missing(environment)
    if absent:
        print(f"gpu_check: {', '.join(absent)} cannot be found, so most stages will fail: see --help", file=sys.stderr)
    run.record = {"machine": describe(run), "wheels": wheels, "missing": absent, "stages": {}}
    stages = [stage for stage in STAGES if stage.name in given.stages]
    take(run, stages, lambda text: print(f"gpu_check: {text}", flush=True))
    print((run.out / "page.md").read_text())
    print(f"gpu_check: please send {run.out / 'page.md'} and {run.out / 'page.json'}")
    return 0 if all(found["outcome"] in gpu_page.FINE for found in run.record["stages"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
