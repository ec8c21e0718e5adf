"""The energy of a piece of work, if the machine reports it: RAPL on Linux, NVML on an NVIDIA GPU."""

from collections.abc import Callable
from pathlib import Path

import torch

from fastdhm.benchmarks.harness.machine import wait_for

NOT_TOLD = "not told by this machine"
POWERCAP = Path("/sys/class/powercap")


def joules(run: Callable[[], object], calls: int, device: torch.device, powercap: Path = POWERCAP) -> float | None:
    """Joules per call, over ``calls`` calls in a row; None if the machine does not report energy.

    On the CPU: of all processor packages, with everything that runs on them. On CUDA: of the GPU only.
    """
    meter = _nvml(device) if device.type == "cuda" else _rapl(powercap)
    if meter is None:
        return None
    wait_for(device)
    before = meter()
    for _ in range(calls):
        run()
    wait_for(device)
    used = [
        after - start if after >= start else after - start + wrap
        for (start, wrap), (after, _) in zip(before, meter(), strict=True)
    ]
    return sum(used) / 1e6 / calls


def _rapl(powercap: Path) -> Callable[[], list[tuple[int, int]]] | None:
    """Reads the microjoules of each package and the value at which its counter wraps; None if they cannot be read.

    On most systems only root may read them.
    """
    packages = sorted(path for path in powercap.glob("*-rapl:*") if path.name.count(":") == 1)

    def number(file: Path) -> int:
        return int(file.read_text("utf-8"))

    def read() -> list[tuple[int, int]]:
        return [(number(package / "energy_uj"), number(package / "max_energy_range_uj")) for package in packages]

    try:
        return read if read() else None
    except (OSError, ValueError):
        return None


def _nvml(device: torch.device) -> Callable[[], list[tuple[int, int]]] | None:
    """The same from NVML's counter, which does not wrap; None without the ``pynvml`` package or on an older GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, no driver or not supported
        return None
    return lambda: [(1000 * pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), 0)]
