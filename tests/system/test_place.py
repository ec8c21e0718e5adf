"""Where a process stands, from the environment of torchrun and SLURM."""

import pytest

from fastdhm.errors import UserError
from fastdhm.system.place import Place, place

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"}
SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08,11]", "SLURM_JOB_ID": "123456",
}  # fmt: skip


def test_a_process_alone_has_no_place():
    assert place({}) is None
    assert place({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) is None


def test_torchrun_says_where_a_process_stands():
    assert place(TORCHRUN) == Place(3, 4, 1, 2, "a", 29500)


def test_slurm_says_where_a_process_stands():
    assert place(SLURM) == Place(5, 8, 1, 4, "gpu07", 29956)
    assert place(SLURM | {"SLURM_STEP_NODELIST": "login1,gpu2"}).address == "login1"


def test_a_batch_script_of_slurm_is_no_process_of_a_run():
    assert place(SLURM | {"SLURM_STEP_ID": "batch"}) is None


@pytest.mark.parametrize(
    ("name", "value", "rule"), [("RANK", "4", "from 0 to 3"), ("LOCAL_RANK", "x", "whole numbers")]
)
def test_a_place_that_cannot_be_is_refused(name, value, rule):
    with pytest.raises(UserError, match=rule):
        place(TORCHRUN | {name: value})
