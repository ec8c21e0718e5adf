"""Runs of several processes that are stopped, killed, held up or lose their disk: all end soon, one says why, once, and
the run goes on from its last checkpoint.
"""

import re
import signal
from collections import defaultdict

import pytest
import torch
from many_processes import processes

from fastdhm.cli import main
from fastdhm.engine.saved.checkpoint import load_checkpoint
from fastdhm.engine.saved.record import read_log
from runs import assert_same_state, command

SILENT = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # torch is imported before the command line can set it


def run(number: int, run_dir, *flags: str, patch: str = "", seconds: int = 60):
    """``(exit statuses, stdout of all, lines of stderr of all)`` of a small run; ``patch`` is run first, in each."""
    program = f"""
import errno, signal
from fastdhm.cli import main
from fastdhm.engine import evaluate, validation, train as training
from fastdhm.engine.run import Run
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.record import Log
from fastdhm.errors import UserError
def die(number=signal.SIGKILL): os.kill(os.getpid(), number)
def before(owner, name, act):
    original, calls = getattr(owner, name), []
    def changed(*given, **named):
        calls.append(given)
        act(len(calls))
        return original(*given, **named)
    setattr(owner, name, changed)
{patch}
sys.exit(main({["train", *flags] if "--resume" in flags else command(run_dir, *flags)!r}))
"""
    ended = processes(program, number, seconds=seconds, **SILENT)
    lines = [line for *_, err in ended for line in err.splitlines()]
    return [child.returncode for child, *_ in ended], "".join(out for _, out, _ in ended), lines


FULL = "raise OSError(errno.ENOSPC, 'No space left on device', str({}))"
FAULTS = {
    "a file that process 1 alone reads": (
        """
from fastdhm.data.sources.synthetic import SyntheticSource
def damaged(n):
    if d.rank() == 1 and n == 9: raise UserError("images/9.png is damaged")
before(training, "take_step", damaged)
""",
        [2, 2],
        r"fastdhm: error: process 1 of 2 on \S+: images/9\.png is damaged",
        0,
    ),
    "a full disk at a checkpoint": (
        f"""
def full(n):
    if n == 2: {FULL.format("'run/last.pt'")}
before(checkpoint, "save_checkpoint", full)
""",
        [2, 2],
        "fastdhm: error: .*no space left",
        0,
    ),
    "a full disk at the log": (
        """
def full(n):
    if n == 3 and d.rank() == 0: raise UserError("cannot write log.jsonl: no space left; free some space")
before(Log, "write", full)
""",
        [2, 2],
        "fastdhm: error: cannot write log.jsonl: no space left; free some space",
        0,
    ),
    "a loss that is not finite in process 1": (
        """
original = Run.prepare
def prepare(self, *given):
    image, target = original(self, *given)
    return (image * float("nan") if d.rank() == 1 and self.at.step == 4 else image), target
Run.prepare = prepare
""",
        [2, 2],
        r"fastdhm: error: the loss is not finite since step 5: .*the last good checkpoint",
        0,
    ),
    "an error of ours in process 1": (
        """
def wrong(n):
    if d.rank() == 1 and n == 5: raise AssertionError("of ours")
before(training, "take_step", wrong)
""",
        [70, 70],
        r"fastdhm: internal error: process 1 of 2 on \S+: AssertionError: of ours",
        0,
    ),
    "process 1 is killed in a validation": (
        "before(validation, 'evaluate', lambda n: d.rank() == 1 and die())",
        [75, -9],
        r"fastdhm: error: another process of this run ended without a word \(memory\?\)\. Go on .* --resume",
        10,
    ),
    "process 0 is killed at its second checkpoint": (
        "before(checkpoint, 'save_checkpoint', lambda n: n == 2 and die())",
        [-9, 75],
        r"fastdhm: error: another process of this run ended without a word",
        0,
    ),
    "process 0 is killed before the first checkpoint": (
        "before(checkpoint, 'save_checkpoint', lambda n: die())",
        [-9, 75],
        r"fastdhm: error: another process of this run ended without a word",
        None,
    ),
    "process 0 is killed in the last files": (
        "before(checkpoint, 'save_network', lambda n: die())",
        [-9, 75],
        r"fastdhm: error: another process of this run ended without a word",
        20,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_what_ends_one_ends_all_and_is_said_once(tmp_path, fault):
    patch, statuses, said, step = FAULTS[fault]
    found, out, err = run(2, tmp_path / "run", "--epochs", "2", "--log-every", "4", patch=patch)
    assert found == statuses, out + "\n".join(err)
    errors = [line for line in err if line.startswith("fastdhm:") and "please report it" not in line]
    assert len(errors) == 1 and re.match(said, errors[0]), err
    assert "Traceback" not in out + "".join(err)
    last = tmp_path / "run" / "last.pt"
    assert (load_checkpoint(last)["position"]["step"] if last.exists() else None) == step
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert read_log(tmp_path / "run")[-1]["epoch"] == 2 and (tmp_path / "run" / "network.safetensors").exists()


NOTING = """
seen = []
def note(run, step, batch, *given, original=training.take_step):
    print("SEEN", run.at.step, *batch.index_B.tolist())
    original(run, step, batch, *given)
    if run.at.step == STOP and d.rank() == d.count() - 1: die(signal.SIGTERM)
training.take_step = note
"""
SYNCED = ("--epochs", "2", "--sync-bn", "true", "--lr", "0.001")


def seen(out: str) -> dict[int, list[int]]:
    """The samples of each step, in rising order."""
    samples = defaultdict(list)
    for line in out.splitlines():
        if line.startswith("SEEN"):
            step, *indices = map(int, line.split()[1:])
            samples[step] += indices
    return {step: sorted(indices) for step, indices in sorted(samples.items())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """``whole(number)``: a run of so many processes that nothing happened to, and the samples of its steps."""
    done = {}

    def get(number):
        if number not in done:
            folder = tmp_path_factory.mktemp(f"whole-{number}") / "run"
            statuses, out, err = run(number, folder, *SYNCED, patch=NOTING.replace("STOP", "-1"))
            assert statuses == [0] * number, err
            done[number] = folder, seen(out)
        return done[number]

    return get


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 2), (2, 4), (4, 2)])
def test_a_stopped_run_goes_on_in_any_number_of_processes(tmp_path, whole, before, after):
    """It is stopped in the middle of its second epoch, by a signal to one process; all stop at the same step."""
    folder = tmp_path / "run"
    statuses, first, err = run(before, folder, *SYNCED, patch=NOTING.replace("STOP", "13"))
    assert statuses == [128 + signal.SIGTERM] * before, err
    assert first.count("go on with: fastdhm train --resume") == 1 and err == []
    stopped = load_checkpoint(folder / "last.pt")["position"]
    assert stopped["epoch"] == 1 and 3 <= stopped["batch"] <= 5
    statuses, second, err = run(after, folder, "--resume", str(folder), patch=NOTING.replace("STOP", "-1"))
    assert statuses == [0] * after, err
    samples, rest = seen(first), seen(second)
    assert set(samples) == set(range(stopped["step"])) and not samples.keys() & rest.keys()
    other, expected = whole(2 if before == after else 1)
    assert samples | rest == expected, "each sample once an epoch, in the batch where it belongs"
    if before == after:
        assert_same_state(folder / "last.pt", other / "last.pt")
        return
    ours, theirs = (
        torch.cat([value.double().flatten() for value in load_checkpoint(path / "last.pt")["model"].values()])
        for path in (folder, other)
    )
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
    losses = [[row["loss"] for row in read_log(path) if row["kind"] == "epoch"] for path in (folder, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_machines_that_see_other_checkpoints_are_told(tmp_path, whole):
    """As where each has a run folder of its own."""
    folder, own = whole(2)[0], "training.sha256_of = lambda path: os.environ['RANK'] * 12"
    statuses, _, err = run(2, folder, "--resume", str(folder), patch=own)
    assert statuses == [2] * 2
    [line] = err
    assert re.search(r"process 1 on .* has a last.pt of checksum 1{12}, and process 0 on .* has 0{12}", line), err


@pytest.mark.slow
def test_a_batch_that_does_not_divide_by_the_new_number_is_refused(tmp_path, whole):
    folder = whole(2)[0]
    statuses, _, err = run(3, folder, "--resume", str(folder))
    assert statuses == [2] * 3
    [line] = err
    assert "batch_size is 8, for 3 processes: must be a multiple of 3" in line
