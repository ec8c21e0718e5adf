"""What a benchmark ran on: hardware, versions, and how busy the machine was."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastdhm import __version__
from fastdhm.commands.doctor.machine import FEATURES, cpu_model, cpu_words
from fastdhm.ops import _extension
from fastdhm.system import processors
from fastdhm.system.memory import available_bytes

__all__ = ["available_bytes", "busy", "describe", "free_bytes", "tf32", "wait_for"]


def describe(device: torch.device, threads: int) -> dict[str, Any]:
    """Processor, GPU, versions and load average for the record, and the ``threads`` in use."""
    return {
        "cpu": cpu_model(),
        "features": [name for name in FEATURES if name in cpu_words("flags", "Features")],
        "processors": processors.count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        **(_cuda(device) if device.type == "cuda" else {}),
        "fastdhm": __version__,
        "extension": _extension.reason() or "built",
        "load_average": round(os.getloadavg()[0], 2),
    }


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within it, CUDA float32 is TF32 in convolutions and matrix products, or in neither; torch's default is mixed."""
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def free_bytes(device: torch.device) -> int | None:
    """Of the device's memory; None where the system does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cuda(device: torch.device) -> dict[str, object]:
    """Other facts that decide the speed of a GPU, and what float32 means on it."""
    found = torch.cuda.get_device_properties(device)
    return {
        "cudnn": torch.backends.cudnn.version(),
        "triton": _version("triton"),
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "gpu_gib": round(found.total_memory / 2**30, 1),
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def busy(load_average: float, processors: int, threads: int) -> str | None:
    """A warning if other processes use the processors that the benchmark needs, else None."""
    if load_average <= processors - threads + 0.5:
        return None
    return (
        f"the machine is busy (load average {load_average:g}, {processors} processors): "
        "trust the ratios, not the times, or wait until it is idle"
    )
