"""What this machine has, and what a run uses of it: facts for ``fastdhm doctor`` and for crash reports.

Nothing here raises: a fact that cannot be found out is reported as unknown, with the reason.
"""

import importlib
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastdhm.system import memory, processors

# The instruction sets that decide the speed of vectorised code, by their names in Linux.
FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "bf16")
PATIENCE_SECONDS = 5  # a drive or a driver that takes longer counts as absent
SMALL_SHM_MIB = 256  # a container's usual 64 MiB is too little for batches of photographs
LITTLE_DISK_GIB = 5


@dataclass(frozen=True)
class Fact:
    """A line of the report."""

    name: str
    text: str
    advice: str | None = None
    """What to do about it; None if all is well."""


def asked(name: str, ask: Callable[[], Fact | str]) -> Fact:
    """The answer of ``ask``; if it fails or takes more than :data:`PATIENCE_SECONDS`, a fact that says so."""
    answers: list[Fact] = []

    def run() -> None:
        try:
            answer = ask()
            answers.append(answer if isinstance(answer, Fact) else Fact(name, answer))
        except Exception as error:
            answers.append(Fact(name, f"unknown ({type(error).__name__}: {error})"))

    thread = threading.Thread(target=run, daemon=True)  # if it hangs, the process can still end
    try:
        thread.start()
    except RuntimeError as error:  # no more threads can be started
        return Fact(name, f"unknown ({error})")
    thread.join(PATIENCE_SECONDS)
    late = Fact(name, f"no answer in {PATIENCE_SECONDS} s", "a drive, or the driver, does not answer: check it first")
    return answers[0] if answers else late


def cpu_words(*keys: str) -> list[str]:
    """The words in the first line of /proc/cpuinfo that begins with one of ``keys``."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.split()
    return []


def cpu_model() -> str:
    """The processor's name."""
    return " ".join(cpu_words("model name", "Model")) or platform.processor() or platform.machine()


def hardware() -> list[Fact]:
    """Processor, memory, GPU."""
    facts = [
        asked("processor", lambda: f"{cpu_model()} ({platform.machine()})"),
        asked("instructions", lambda: ", ".join(f for f in FEATURES if f in cpu_words("flags", "Features")) or "none"),
        asked("processors", _processors),
        asked("memory", _memory),
        asked("/dev/shm", _shared_memory),
        asked("GPU", _gpu),
        asked("open files", _open_files),
    ]
    return facts


def _processors() -> Fact:
    allowed, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    why = processors.why() or " (the affinity mask)" * (allowed < there)
    return Fact("processors", f"{processors.count()} to use{why}, {there} in the machine")


def _memory() -> Fact:
    available = memory.available_bytes()
    free = "an unknown part" if available is None else f"{available / 2**30:.1f} GiB"
    text = f"{memory.installed_bytes() / 2**30:.1f} GiB, {free} of it available"
    if memory.total_bytes() < memory.installed_bytes():
        text += f"; this container may use {memory.total_bytes() / 2**30:.1f} GiB"
    return Fact("memory", text)


def _shared_memory() -> Fact:
    usage = shutil.disk_usage("/dev/shm")
    text = f"{usage.total / 2**20:,.0f} MiB, {usage.free / 2**20:,.0f} MiB free"
    small = usage.free < SMALL_SHM_MIB * 2**20
    return Fact("/dev/shm", text, "small: give the container more (docker run --shm-size=2g)" if small else None)


def _gpu() -> Fact:
    import torch

    if torch.cuda.is_available():
        names = [
            f"{torch.cuda.get_device_name(index)} "
            f"({torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GiB, "
            f"compute capability {'.'.join(map(str, torch.cuda.get_device_capability(index)))})"
            for index in range(torch.cuda.device_count())
        ]
        return Fact("GPU", f"{', '.join(names)}; driver {_driver() or 'unknown'}")
    driver = _driver()
    if driver is None:
        return Fact("GPU", "none: there is no NVIDIA driver, so everything runs on the CPU")
    if torch.version.cuda is None:
        advice = "this torch was built without CUDA: install one with CUDA (pip install torch)"
    else:
        advice = (
            f"torch (CUDA {torch.version.cuda}) does not see it: the driver may be too old, or no device is visible"
        )
    return Fact("GPU", f"driver {driver}, but torch sees no device", advice)


def _driver() -> str | None:
    """The NVIDIA driver's version; None where there is none."""
    path = Path("/proc/driver/nvidia/version")
    if path.exists():
        return next((word for word in path.read_text(encoding="utf-8").split() if word[:1].isdigit()), "unknown")
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    return result.stdout.split("\n")[0].strip() or None if result.returncode == 0 else None


def _open_files() -> Fact:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,} (ulimit -n)"
    few = soft != resource.RLIM_INFINITY and soft < 512
    return Fact("open files", text, "few: raise it with ulimit -n 4096" if few else None)


def folders(data_dir: Path) -> list[Fact]:
    """The folders of data, runs and caches, and whether they can be written."""
    places = {
        "data": data_dir,
        "runs": Path("runs").absolute(),
        "temporary files": Path(tempfile.gettempdir()),
        "compiled code": Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or _inductor_cache()),
    }
    return [asked(name, partial(_folder, name, path)) for name, path in places.items()]


def _inductor_cache() -> str:
    return importlib.import_module("torch._inductor.runtime.cache_dir_utils").default_cache_dir()


def _folder(name: str, path: Path) -> Fact:
    place = next(p for p in (path, *path.absolute().parents) if p.exists())
    usage, kind = shutil.disk_usage(place), _file_system(place.resolve())
    text = f"{path} ({kind}, {usage.free / 2**30:,.1f} GiB free{'' if place == path else ', does not exist yet'})"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Fact(name, text, f"cannot be written: {place} is read-only for this user")
    little = usage.free < LITTLE_DISK_GIB * 2**30
    return Fact(name, text, "little space: data sets and checkpoints take gigabytes" if little else None)


def _file_system(path: Path) -> str:
    """The type of the file system that holds ``path``, such as ext4 or nfs4."""
    best, kind = "", "unknown file system"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4].encode().decode("unicode_escape")  # spaces are written as \040
        inside = path == Path(mount) or Path(mount) in path.parents
        if inside and len(mount) >= len(best):  # of two mounts at one place, the later one is on top
            best, kind = mount, right.split()[0]
    return kind


def choices() -> list[Fact]:
    """What a run with default settings uses here."""
    return [
        asked("device", _device),
        asked("precision", _precision),
        asked("loss", _loss_form),
        asked("loader", _loader),
    ]


def _device() -> str:
    from fastdhm.engine.device import pick_device

    return str(pick_device("auto"))


def _precision() -> str:
    from fastdhm.engine.device import pick_device, pick_precision

    return str(pick_precision("auto", pick_device("auto"))).removeprefix("torch.")


def _loss_form() -> str:
    from fastdhm.engine.device import pick_device
    from fastdhm.ops.mimic_loss import DEVICES, use_fused

    device = pick_device("auto").type
    fused = use_fused("auto", device)
    return next(form for form, where in DEVICES.items() if where == device) if fused else "eager"


def _loader() -> str:
    from fastdhm.data.loaders.build import pick_kind

    return f"resident for small sets, else {pick_kind('auto')[0]}"
