"""Make the source archive and the wheel in dist/, and try what a user gets: `make dist`.

    python tools/dist.py [--quick]

The wheel is built from the archive, as pip does it, against the torch of the Python that runs this: it is for machines
like this one, the archive for all. It is installed in an environment of its own, which sees the libraries of this one,
where `fastdhm` runs. --quick: as on a machine without a compiler, a wheel without the C++ extension.
"""

import argparse
import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
# where a part of the package lies here -> where it is installed
PARTS = {"fastdhm": "fastdhm", "kernels": "fastdhm/kernels", "benchmarks": "fastdhm/benchmarks"}
IGNORED = ("*.so", "__pycache__", "*.egg-info", ".*", "build", "dist", "runs", "bench", "site")
TRAIN = (
    "train --dataset synthetic:96 --arch resnet8 --batch-size 32 --epochs 1 --max-steps 3 --device cpu --workers 0 "
    "--loader torch --run-dir run"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a wheel without the C++ extension: seconds, not minutes")
    quick = parser.parse_args().quick
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="fastdhm-dist-") as work:
        archive = make_archive(Path(work))
        wheel = make_wheel(archive, quick)
        wrong = [*archive_faults(archive), *wheel_faults(wheel)] or trial_faults(wheel, Path(work), quick)
    for fault in wrong:
        print(f"dist: {fault}", file=sys.stderr)
    if not wrong:
        print(f"dist: {archive.name} and {wheel.name} are whole, and what they install runs")
    return 1 if wrong else 0


def make_archive(work: Path) -> Path:
    """The source archive; made by the build backend in a copy of what is not ignored, as from a fresh clone."""
    tree = work / "tree"
    ignored = shutil.ignore_patterns(*IGNORED)
    shutil.copytree(ROOT, tree, ignore=ignored, symlinks=True)
    make = f"import setuptools.build_meta as backend; backend.build_sdist({str(DIST)!r})"
    DIST.mkdir()
    run([sys.executable, "-c", make], tree)
    return next(DIST.glob("*.tar.gz"))


def make_wheel(archive: Path, quick: bool) -> Path:
    """The wheel that pip makes of the archive, without fetching anything."""
    without = {"CXX": "no-such-compiler"} if quick else {}
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    run([*pip, str(DIST), str(archive)], DIST, **without)
    return next(DIST.glob("*.whl"))


def archive_faults(archive: Path) -> list[str]:
    """What the archive lacks, and what it should not hold."""
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    sources = [*ROOT.glob("csrc/**/*.*"), *(path for part in PARTS for path in ROOT.glob(f"{part}/**/*.py"))]
    wanted = {str(path.relative_to(ROOT)) for path in sources if "results" not in path.parts and not behind_link(path)}
    wanted |= {"LICENSE", "README.md", "pyproject.toml", "setup.py", "fastdhm/py.typed"}
    built = [name for name in names if name.endswith((".so", ".pyc"))]
    return [f"{archive.name} lacks {name}" for name in sorted(wanted - names)] + [
        f"{archive.name} holds {name}, which is built" for name in built
    ]


def wheel_faults(wheel: Path) -> list[str]:
    """What the wheel lacks, in its files and in what it says of itself."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        about = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(file.read(about))
    paths = [(path, part) for part in PARTS for path in ROOT.glob(f"{part}/**/*.py") if not behind_link(path)]
    wanted = {f"{PARTS[part]}/{path.relative_to(ROOT / part)}" for path, part in paths} | {"fastdhm/py.typed"}
    faults = [f"{wheel.name} lacks {name}" for name in sorted(wanted - names)]
    if not any(name.endswith("/LICENSE") for name in names):
        faults.append(f"{wheel.name} lacks LICENSE")
    fields = ("Name", "Version", "Summary", "License-Expression", "Requires-Python", "Description-Content-Type")
    return faults + [f"{wheel.name} does not say its {field}" for field in fields if not metadata[field]]


def behind_link(path: Path) -> bool:
    """Whether a path leads through a link: fastdhm/kernels is one where somebody works without installing."""
    return any(parent.is_symlink() for parent in path.parents)


def trial_faults(wheel: Path, work: Path, quick: bool) -> list[str]:
    """What does not work of an installed wheel."""
    venv = work / "venv"
    run([sys.executable, "-m", "venv", str(venv)], work)
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its libraries, but no editable fastdhm
    python, fastdhm = str(venv / "bin" / "python"), str(venv / "bin" / "fastdhm")
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", str(wheel)], work)
    ask = "from fastdhm.ops import _extension; import fastdhm; print(fastdhm.__file__, _extension.reason() or 'built')"
    place, _, extension = run([python, "-c", ask], work).partition(" ")
    faults = []
    if not place.startswith(str(venv)):
        faults.append(f"fastdhm is imported from {place}, not from the wheel")
    if (extension.strip() == "built") == quick:
        faults.append(f"the C++ extension: {extension.strip()}")
    version = wheel.name.split("-")[1]
    if version not in run([fastdhm, "--version"], work):
        faults.append(f"`fastdhm --version` does not say {version}")
    run([fastdhm, "doctor"], work)
    run([fastdhm, *TRAIN.split()], work)
    if not (work / "run" / "network.safetensors").is_file():
        faults.append("a training of 3 steps leaves no network")
    return faults


def run(command: list[str], folder: Path, **more: str) -> str:
    """What a command prints; ends this program, with all that it said, if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"dist: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
