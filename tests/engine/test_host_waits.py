"""Between log points the loop never waits for the device: whatever would is counted, in a whole run of `fit`."""

import json
from pathlib import Path

import host_waits
import pytest
import torch
from host_waits import watch
from many_processes import outputs

from fastdhm.cli import main
from fastdhm.engine import evaluate, run, sums, train
from fastdhm.engine.saved import record


@pytest.fixture
def events(monkeypatch):
    """What happens in the training loop, in order."""
    return watch(monkeypatch)


def command(tmp_path, *flags):
    base = (
        "--dataset synthetic:160 --arch resnet8 --batch-size 16 --image-size 16 --loader torch --workers 0 --epochs 1"
    )
    folders = ["--run-dir", str(tmp_path / "run"), "--data-dir", str(tmp_path / "data")]
    return ["train", *base.split(), *folders, "--compile", "off", "--log-every", "4", *flags]


ON_A_CPU = ("--device", "cpu", "--precision", "float32")
RECIPES = {
    "plain": [],
    "everything": [
        "--accumulate",
        "2",
        "--clip-grad",
        "1",
        "--label-smoothing",
        "0.1",
        "--mimic-warmup",
        "1",
        "--progressive",
        "0.5",
    ],
    "bernoulli": ["--sampler", "bernoulli", "--sample-every", "step"],
    "cosines": ["--grad-cosine", "1"],
    "corrupt": ["--corrupt-labels", "0.5"],
    "structural": ["--sampler", "structural"],
    "augmented": [
        *("--augment", "rand-4-9", "--color-jitter", "0.4,0.4,0.4,0.1", "--random-grey", "0.2"),
        *("--random-erase", "0.5", "--repeats", "2", "--corrupt-labels", "0.5"),
    ],
    "amsgrad": ["--optimizer", "amsgrad", "--nesterov", "false"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loop_waits_only_where_it_logs(tmp_path, events, recipe):
    """Ten steps, log points at 4 and 8; the reads after the tenth are the epoch's checkpoints and validation."""
    assert main(command(tmp_path, *ON_A_CPU, *RECIPES[recipe])) == 0
    assert_waits_only_where_it_logs(events)
    assert {event for event in events if not isinstance(event, int)} == {"read"}, "and before and after"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["everything", "bernoulli", "structural", "synced"])
def test_nor_do_several_processes_wait(tmp_path, recipe):
    """Before and after their steps they wait for each other."""
    flags = ["--sync-bn", "true"] if recipe == "synced" else RECIPES[recipe]
    program = f"""
    import json, pytest
    sys.path.insert(0, {str(Path(host_waits.__file__).parent)!r})
    from fastdhm.cli import main
    from host_waits import watch
    with pytest.MonkeyPatch.context() as patch:
        events = watch(patch)
        assert main({command(tmp_path, *ON_A_CPU, *flags)!r}) == 0
    print(json.dumps(events))
    """
    for out in outputs(program, 2):
        assert_waits_only_where_it_logs(json.loads(out.splitlines()[-1]))


def assert_waits_only_where_it_logs(events):
    begin, end = events.index(1), events.index(10)
    assert events[begin : end + 1] == [1, 2, 3, 4, "read", 5, 6, 7, 8, "read", 9, 10]


def test_a_wait_between_log_points_is_seen(tmp_path, events, monkeypatch):
    """What the test above rests on: each way of waiting is noticed."""
    advance = train.TrainingDisplay.advance
    ways = [
        lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.numpy(),
        lambda x: x[x > 0], lambda x: float(x.max()), lambda x: x.nonzero(), lambda x: torch.equal(x, x),
    ]  # fmt: skip

    def waiting(self, step, *rest):
        ways[step % len(ways)](torch.ones(3))
        advance(self, step, *rest)

    monkeypatch.setattr(train.TrainingDisplay, "advance", waiting)
    assert main(command(tmp_path, "--device", "cpu", "--max-steps", "9")) == 0
    for step in range(1, 9):
        between = events[events.index(step) + 1 : events.index(step + 1)]
        assert set(between) - {"read"}, f"the wait after step {step} was not seen"


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
def test_torch_sees_no_wait_on_a_gpu(tmp_path, monkeypatch, recipe):
    """torch's own watch raises at a wait, in all of a run's training steps but at the log points."""
    to_host, add = record.to_host, sums.TrainingSums.add

    def allowed_to_host(tensor):
        torch.cuda.set_sync_debug_mode("default")
        return to_host(tensor)

    def watched_add(self, step, *values):
        add(self, step, *values)
        torch.cuda.set_sync_debug_mode("error" if step % 4 and step < 10 else "default")

    for module in (record, run, evaluate, sums):
        monkeypatch.setattr(module, "to_host", allowed_to_host)
    monkeypatch.setattr(sums.TrainingSums, "add", watched_add)
    try:
        assert main(command(tmp_path, "--device", "cuda", *RECIPES[recipe])) == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
