"""Which software is installed, and which parts of fastdhm are missing and why: facts as in ``machine``."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from fastdhm import __version__
from fastdhm.commands.doctor.machine import PATIENCE_SECONDS, Fact, asked

LIBRARIES = (
    "torch", "torchvision", "triton", "ffcv", "timm", "schedulefree", "numpy", "pillow", "jsonargparse", "rich",
    "tensorboard", "safetensors", "matplotlib", "scipy",
)  # fmt: skip
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CXX",
    "TORCHINDUCTOR_CACHE_DIR", "TRITON_INTERPRET", "PYTHONPATH", "TMPDIR", "LD_PRELOAD",
)  # fmt: skip


def software() -> list[Fact]:
    """Versions, and for each missing part the reason."""
    return [
        asked("fastdhm", lambda: f"{__version__} ({Path(__file__).parents[3]})"),
        asked("system", lambda: f"{platform.system()} {platform.release()}, {_distribution()}, {_c_library()}"),
        asked("Python", lambda: f"{platform.python_version()} ({sys.executable})"),
        asked("libraries", _libraries),
        asked("torch", _torch),
        asked("C++ extension", _extension_fact),
        asked("Triton", _triton),
        asked("FFCV", _ffcv),
        asked("C++ compiler", _compiler),
        asked("encodings", _encodings),
        asked("environment", _environment),
    ]


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown distribution")
    except OSError:
        return "unknown distribution"


def _c_library() -> str:
    return " ".join(platform.libc_ver()).strip() or "unknown C library"


def _libraries() -> str:
    return ", ".join(f"{name} {_version(name) or 'none'}" for name in LIBRARIES)


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> str:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return f"{torch.__version__}, {cuda}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _extension_fact() -> Fact:
    from fastdhm.ops import _extension

    if not _extension.available():
        return Fact("C++ extension", "missing: training works, but several times slower", _extension.reason())
    module = _extension.require("the report")
    info = module.build_info()
    cuda = f"CUDA code for {info['cuda_archs']}" if info["cuda"] else f"no CUDA code ({info['why_no_cuda']})"
    used = f"uses {module.simd()}" + ", bfloat16 products" * ("avx512_bf16" in info["cpu_features"])
    return Fact("C++ extension", f"built by {info['compiler']} for torch {info['torch']}, {cuda}; {used}")


def _triton() -> str:
    from fastdhm.ops import _fused_mimic_loss

    return _fused_mimic_loss.why_not("triton") or f"{metadata.version('triton')}, for GPUs"


def _ffcv() -> Fact:
    from fastdhm.data.loaders.ffcv_library import HOW_TO_GET, why_not

    reason = why_not()
    if reason is None:
        return Fact("FFCV", f"{metadata.version('ffcv')}: loads data sets that do not fit in memory")
    return Fact("FFCV", f"missing, so torch's loader is used ({reason})", HOW_TO_GET)


def _compiler() -> Fact:
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        advice = "needed to build the extension and for --compile on: apt-get install g++, or set CXX"
        return Fact("C++ compiler", f"none ({name} is not found)", advice)
    run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    return Fact("C++ compiler", f"{path} ({next(iter(run.stdout.splitlines()), 'does not say its version')})")


def _encodings() -> str:
    output = getattr(sys.stdout, "encoding", None) or "none"
    return f"{sys.getfilesystemencoding()} for names of files, {output} for the output"


def _environment() -> str:
    """The environment variables that change what runs, including those of fastdhm."""
    found = {n: value for n, value in sorted(os.environ.items()) if n in VARIABLES or n.startswith("FASTDHM_")}
    return ", ".join(f"{name}={value}" for name, value in found.items()) or "as usual"
