"""Energy from the kernel's counters, and none where there are none."""

import pytest
import torch

from fastdhm.benchmarks.harness.energy import joules

CPU = torch.device("cpu")


def package(folder, name, energy_uj, limit_uj):
    (folder / name).mkdir(parents=True)
    (folder / name / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{limit_uj}\n")


def spend(folder, name, energy_uj):
    (folder / name / "energy_uj").write_text(f"{energy_uj}\n")


def test_packages_are_summed_and_counters_wrap(tmp_path):
    package(tmp_path, "intel-rapl:0", 5_000_000, 262_000_000)
    package(tmp_path, "intel-rapl:1", 261_000_000, 262_000_000)
    package(tmp_path, "intel-rapl:0:0", 1, 2)  # a part of the first one

    def run():
        spend(tmp_path, "intel-rapl:0", 11_000_000)
        spend(tmp_path, "intel-rapl:1", 1_000_000)

    assert joules(run, 4, CPU, tmp_path) == pytest.approx((6 + 2) / 4)


def test_no_counter_is_no_number(tmp_path):
    assert joules(lambda: None, 1, CPU, tmp_path) is None
    assert joules(lambda: None, 1, CPU, tmp_path / "nowhere") is None
    (tmp_path / "intel-rapl:0").mkdir()  # one that may not be read looks like one that is not there
    assert joules(lambda: None, 1, CPU, tmp_path) is None


@pytest.mark.gpu
def test_a_gpu_tells_or_does_not():
    """The work is as long as some ticks of the GPU's counter, which are up to a tenth of a second apart."""
    left, right = torch.randn(2, 8192, 8192, device="cuda")
    used = joules(lambda: left @ right, 100, torch.device("cuda"))
    assert used is None or used > 0
