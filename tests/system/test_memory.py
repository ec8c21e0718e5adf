"""How much memory this process may use: a container's limit counts, not the machine's memory."""

import math

import pytest
import torch
from control_groups import V1, V2, machine

from fastdhm.data.loaders.resident_loader import CannotHold, check_room
from fastdhm.system import memory

MACHINES = {
    "no control groups at all": ("", "", {}, math.inf),
    "version 2 without a limit": ("0::/\n", V2.format(top="/", at="/cg"), {"cg": {"memory.max": "max\n"}}, math.inf),
    "version 2, of a group around it": (
        "0::/slurm/job\n",
        V2.format(top="/", at="/cg"),
        {"cg/slurm": {"memory.max": "1048576\n"}, "cg/slurm/job": {"memory.max": "2097152\n"}},
        1 << 20,
    ),
    "version 1, beside processors of another group": (
        "4:memory:/far\n3:cpu:/near\n",
        V1.format(top="/", at="/cg", controllers="memory"),
        {"cg/far": {"memory.limit_in_bytes": "1048576\n"}, "cg/near": {"memory.limit_in_bytes": "1\n"}},
        1 << 20,
    ),
}


@pytest.mark.parametrize(("groups", "mounts", "files", "limit"), MACHINES.values(), ids=MACHINES)
def test_a_container_limits_the_memory(tmp_path, groups, mounts, files, limit):
    assert memory.limit_bytes(machine(tmp_path, groups, mounts, files)) == limit


def test_images_are_held_within_the_containers_memory(monkeypatch):
    monkeypatch.setattr(memory, "limit_bytes", lambda: 1 << 30)
    check_room(500 << 20, torch.device("cpu"), asked=True)
    with pytest.raises(CannotHold, match=r"0\.5 GiB is the limit"):
        check_room(600 << 20, torch.device("cpu"), asked=True)
