"""Where a process stands, from the environment of torchrun and SLURM."""

import pytest

from fastdhm.errors import UserError
from fastdhm.system.place import Place, attempt, place, speaks

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"}
# of a job of more tasks; as srun 22.05 sets them
SLURM = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_TASKS_PER_NODE": "8(x2)", "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "123456",
}  # fmt: skip


def test_a_process_alone_has_no_place():
    assert place({}) is None
    assert place({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) is None
    assert place({"WORLD_SIZE": "1"}) is None


def test_torchrun_says_where_a_process_stands():
    assert place(TORCHRUN) == Place(3, 4, 1, 2, "a", 29500)


def test_a_launcher_of_one_process_a_machine_says_no_local_rank():
    alone = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456"}
    assert place(alone) == Place(1, 2, 0, 1, "pod-0", 23456)


def test_slurm_says_where_a_process_stands():
    assert place(SLURM) == Place(5, 8, 1, 4, "gpu07", 20000 + 31 * 123456 % 10000)
    assert place(SLURM | {"MASTER_ADDR": "a", "MASTER_PORT": "7"}) == Place(5, 8, 1, 4, "a", 7)


def test_the_first_speaks_and_whoever_is_alone():
    assert speaks({})
    assert speaks(TORCHRUN | {"RANK": "0"})
    assert not speaks(TORCHRUN)
    assert not speaks(SLURM)
    assert speaks(TORCHRUN | {"RANK": "x"}), "a place that cannot be is said"


def test_steps_of_slurm_meet_at_ports_of_their_own():
    assert len({place(SLURM | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).port
                for job in range(10) for step in range(10)}) == 100  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("login1,gpu2", "login1"), ("gpu[07-09,12]-ib,login1", "gpu07-ib"), ("rack[1-2]node[3-4]", "rack1node3")],
)
def test_the_first_host_of_a_list(nodes, first):
    assert place(SLURM | {"SLURM_STEP_NODELIST": nodes}).address == first


@pytest.mark.parametrize(("node", "tasks"), [("0", 4), ("1", 4), ("2", 3)])
def test_machines_may_have_tasks_of_another_number(node, tasks):
    here = {"SLURM_STEP_NUM_TASKS": "11", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": node}
    assert place(SLURM | here).local_count == tasks


def test_on_one_machine_no_name_needs_to_be_known():
    assert place(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_NODEID": "0"}).address == "localhost"


def test_what_the_step_does_not_say_its_job_does():
    old = {name: value for name, value in SLURM.items() if name not in ("SLURM_STEP_NUM_TASKS", "SLURM_NODEID")}
    assert place(old).count == 16


@pytest.mark.parametrize(
    "shell",
    [
        {"SLURM_STEP_ID": "batch"},
        {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},  # salloc
        {"SLURM_PTY_PORT": "38893"},  # srun --pty
    ],
    ids=["batch script", "salloc", "pty"],
)
def test_a_shell_of_slurm_is_no_process_of_a_run(shell):
    assert place(SLURM | shell) is None


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        (TORCHRUN | {"RANK": "4"}, "RANK is 4: must be below WORLD_SIZE, which is 4"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK is 2: must be below LOCAL_WORLD_SIZE, which is 2"),
        (TORCHRUN | {"LOCAL_RANK": "x"}, "whole numbers"),
        (TORCHRUN | {"WORLD_SIZE": "-1"}, "whole numbers"),
        ({"WORLD_SIZE": "2"}, "RANK=''.*whole numbers"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        (TORCHRUN | {"MASTER_PORT": "65536"}, "MASTER_PORT is '65536'"),
        (TORCHRUN | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set, for 4 processes of which 2 are here"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "MASTER_ADDR is not set"),
    ],
)
def test_a_place_that_cannot_be_is_refused(values, rule):
    with pytest.raises(UserError, match=rule):
        place(values)


def test_a_launcher_says_how_often_it_has_begun():
    assert attempt({}) == 0
    assert attempt({"TORCHELASTIC_RESTART_COUNT": "2"}) == 2
