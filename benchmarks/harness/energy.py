"""What a piece of work costs in energy, where the machine tells: RAPL on Linux, NVML on an NVIDIA GPU."""

from collections.abc import Callable
from pathlib import Path

import torch

from fastdhm.benchmarks.harness.machine import wait_for

NOT_TOLD = "not told by this machine"
POWERCAP = Path("/sys/class/powercap")


def joules(run: Callable[[], object], calls: int, device: torch.device, powercap: Path = POWERCAP) -> float | None:
    """Joules of one of ``calls`` calls in a row; None where the machine does not tell.

    On the CPU those of all processor packages, whatever else runs on them, on CUDA those of the GPU alone.
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
    """Reads the microjoules of each package and where its counter wraps around; None where the kernel has none to read
    (on most systems only root may)."""
    packages = sorted(path for path in powercap.glob("*-rapl:*") if path.name.count(":") == 1)

    def read() -> list[tuple[int, int]]:
        names = ("energy_uj", "max_energy_range_uj")
        return [tuple(int((package / name).read_text("utf-8")) for name in names) for package in packages]

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
    except Exception:  # not installed, no driver, not supported: there is nothing to be told
        return None
    return lambda: [(1000 * pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), 0)]
