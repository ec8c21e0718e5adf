"""How many processors this process may use: quotas of control groups as real machines and containers show them."""

import math
import os
import subprocess
import sys

import pytest
from control_groups import V1, V2, machine

from fastdhm.system import processors

V1_QUOTA = {"cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "50000\n"}


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))


MACHINES = {
    "no control groups at all": ("", "", {}, math.inf),
    "version 2 without a limit": ("0::/user\n", V2.format(top="/", at="/cg"), {"cg/user": "max 100000\n"}, math.inf),
    "version 2, its own": ("0::/job\n", V2.format(top="/", at="/cg"), {"cg/job": "250000 100000\n"}, 2.5),
    "version 2, of a group around it": (
        "0::/slurm/job/step\n",
        V2.format(top="/", at="/cg"),
        {"cg/slurm": "400000 100000", "cg/slurm/job": "300000 100000", "cg/slurm/job/step": "max 100000"},
        3,
    ),
    "a container with a name space of its own": (
        "0::/\n",
        V2.format(top="/", at="/sys/fs/cgroup"),
        {"sys/fs/cgroup": "100000 100000"},
        1,
    ),
    "a container that sees its path as on the host": (
        "0::/docker/abc\n",
        V2.format(top="/docker/abc", at="/sys/fs/cgroup"),
        {"sys/fs/cgroup": "200000 100000"},
        2,
    ),
    "a container whose path on the host is mounted nowhere": (
        "0::/kubepods/pod1/abc\n",
        V2.format(top="/", at="/sys/fs/cgroup"),
        {"sys/fs/cgroup": "200000 100000"},
        2,
    ),
    "moved out of its name space": (
        "0::/../other\n",
        V2.format(top="/", at="/cg"),
        {"cg": "max 100000", "other": "100000 100000"},
        math.inf,
    ),
    "version 1 without a limit": (
        "3:cpu:/\n",
        V1.format(top="/", at="/cg/cpu", controllers="cpu"),
        {"cg/cpu": {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}},
        math.inf,
    ),
    "version 1, mounted with its sister and in an odd place with a blank": (
        "4:memory:/far\n3:cpu,cpuacct:/docker/abc\n",
        V1.format(top="/docker", at=r"/my\040groups", controllers="cpu,cpuacct"),
        {"my groups/abc": V1_QUOTA},
        3,
    ),
    "both versions, the quota in version 1": (
        "3:cpu:/job\n1:name=systemd:/x\n0::/\n",
        V1.format(top="/", at="/cg/cpu", controllers="cpu") + "\n" + V2.format(top="/", at="/cg/unified"),
        {"cg/cpu/job": V1_QUOTA, "cg/unified": {}},
        3,
    ),
    "half a processor": ("0::/\n", V2.format(top="/", at="/cg"), {"cg": "50000 100000"}, 0.5),
    "a file that makes no sense": ("0::/\n", V2.format(top="/", at="/cg"), {"cg": "many\n"}, math.inf),
}


@pytest.mark.parametrize(("groups", "mounts", "files", "quota"), MACHINES.values(), ids=MACHINES)
def test_a_quota_limits_the_processors(tmp_path, eight, groups, mounts, files, quota):
    root = machine(tmp_path, groups, mounts, files)
    assert processors.quota(root) == quota
    assert processors.count(root, {}) == max(1, min(8, quota) // 1)
    assert (processors.why(root, {}) == "") == (quota == math.inf)


def test_what_limits_is_said(tmp_path, eight):
    root = machine(tmp_path, "0::/\n", V2.format(top="/", at="/cg"), {"cg": "150000 100000"})
    assert processors.why(root, {}) == " (a quota of 1.5 of 8 processors)"


@pytest.mark.parametrize(("value", "count"), [("3", 3), ("2,4", 2), (" 1 ", 1), ("100", 8), ("", 8), ("all", 8)])
def test_what_the_user_set_counts(tmp_path, eight, value, count):
    environ = {"OMP_NUM_THREADS": value}
    assert processors.count(tmp_path, environ) == count
    assert processors.why(tmp_path, environ) == (" (OMP_NUM_THREADS)" if count < 8 else "")


def test_the_affinity_mask_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {5, 7})
    assert processors.count(tmp_path, {}) == 2


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_CPUS_ON_NODE": "8"}


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        (TORCHRUN, 4),
        (TORCHRUN | {"OMP_NUM_THREADS": "1"}, 4),  # torchrun sets it where the user did not
        (TORCHRUN | {"OMP_NUM_THREADS": "2"}, 2),
        (SRUN, 2),
        (SRUN | {"SLURM_CPUS_ON_NODE": "32"}, 8),  # the mask of eight is this task's own
        (SRUN | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_TASKS_PER_NODE": "1"}, 8),  # a shell of salloc
        (SRUN | {"SLURM_PTY_PORT": "1"}, 8),
    ],
)
def test_the_processes_of_a_machine_share_its_processors(tmp_path, eight, environ, count):
    assert processors.count(tmp_path, environ) == count


def test_setup_reads_the_file_alone():
    program = f"import runpy, sys; print(runpy.run_path({processors.__file__!r})['count'](), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(processors.count()), "False"]


def test_torch_takes_no_more_threads_than_a_quota(monkeypatch):
    import torch

    from fastdhm.engine.device import describe_threads, use_processors

    before = torch.get_num_threads()
    monkeypatch.setattr(processors, "count", lambda: 2)
    monkeypatch.setattr(processors, "why", lambda: " (a quota of 2 of 64 processors)")
    try:
        monkeypatch.setattr(processors, "asked", lambda: 5)
        torch.set_num_threads(5)
        use_processors()
        assert describe_threads() == "5 threads"  # the user's number stands
        monkeypatch.setattr(processors, "asked", lambda: None)
        use_processors()
        assert describe_threads() == "2 threads (a quota of 2 of 64 processors)"
        torch.set_num_threads(1)
        use_processors()
        assert describe_threads() == "1 thread"
    finally:
        torch.set_num_threads(before)
