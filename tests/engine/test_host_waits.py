"""Between log points the loop never waits for the device: whatever would is counted, in a whole run of `fit`."""

from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastdhm.cli import main
from fastdhm.engine import evaluate, run, sums, train
from fastdhm.engine.fast.fuse import FusedForward
from fastdhm.engine.saved import record
from fastdhm.ops import branch_mask, mimic_loss

aten = torch.ops.aten
# What torch.cuda.set_sync_debug_mode names on a GPU: reading a value, and results whose size the values decide.
WAITING_OPS = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select,
    aten.unique_dim, aten._unique2, aten.bincount, aten.repeat_interleave,
}  # fmt: skip
WAITING_METHODS = {
    "item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__",
    "nonzero", "is_nonzero", "equal", "allclose", "synchronize",
    "tensor", "as_tensor",  # made on the host, and copied from memory that is not page-locked
}  # fmt: skip


class _Ops(TorchDispatchMode):
    """Sees every operation, of autograd and of optimizers too."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if func.overloadpacket in WAITING_OPS or masks:
            self.note(str(func))
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """Sees what Python asks of a tensor, which on a CPU is no operation: `tolist`, `cpu`, `numpy`."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_function__(self, func, types, args=(), kwargs=None):
        to_cpu = func is torch.Tensor.to and "cpu" in map(str, (*args[1:], *(kwargs or {}).values()))
        if getattr(func, "__name__", "") in WAITING_METHODS or (to_cpu and not args[0].is_cpu):
            self.note(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def events(monkeypatch):
    """What happens in the training loop, in order: a step's number, "read" where `record.to_host` does, else a wait."""
    seen, inside = [], []

    def note(name):
        if inside == ["fit"]:  # not in to_host, where waiting is allowed, nor in the loader, which has no device
            seen.append(name)

    @contextmanager
    def within(what):
        inside.append(what)
        yield
        inside.pop()

    to_host, add, fit = record.to_host, sums.TrainingSums.add, train.fit

    def counted_to_host(tensor):
        seen.append("read")
        with within("to_host"):
            return to_host(tensor)

    def counted_add(self, step, *values):
        add(self, step, *values)
        seen.append(step)

    def loading(batches):
        batches = iter(batches)
        while True:
            with within("loader"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def counted_fit(run, data, *rest):
        epoch = data.train.epoch

        @contextmanager
        def counted_epoch(*args, **options):
            with within("loader"):
                opened = epoch(*args, **options)
                batches = opened.__enter__()
            yield loading(batches)
            with within("loader"):
                opened.__exit__(None, None, None)

        monkeypatch.setattr(data.train, "epoch", counted_epoch)
        with within("fit"), _Methods(note), _Ops(note):
            fit(run, data, *rest)

    def allow(module, name):
        function = getattr(module, name)

        def allowed(*args, **options):
            with within(name):
                return function(*args, **options)

        monkeypatch.setattr(module, name, allowed)

    allow(train, "evaluate")  # waits as often as it likes
    allow(branch_mask, "_check")  # these two read values on a CPU only
    allow(mimic_loss, "check_values")
    allow(FusedForward, "_trace")  # once for each set of branches, and on a CPU only
    for module in (record, run, evaluate, sums):
        monkeypatch.setattr(module, "to_host", counted_to_host)
    monkeypatch.setattr(sums.TrainingSums, "add", counted_add)
    monkeypatch.setattr(train, "fit", counted_fit)
    return seen


def command(tmp_path, *flags):
    base = (
        "--dataset synthetic:160 --arch resnet8 --batch-size 16 --image-size 16 --loader torch --workers 0 --epochs 1"
    )
    folders = ["--run-dir", str(tmp_path / "run"), "--data-dir", str(tmp_path / "data")]
    return ["train", *base.split(), *folders, "--compile", "off", "--log-every", "4", *flags]


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
    "amsgrad": ["--optimizer", "amsgrad", "--nesterov", "false"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loop_waits_only_where_it_logs(tmp_path, events, recipe):
    """Ten steps, log points at 4 and 8; the reads after the tenth are the epoch's checkpoints and validation."""
    assert main(command(tmp_path, "--device", "cpu", "--precision", "float32", *RECIPES[recipe])) == 0
    begin, end = events.index(1), events.index(10)
    assert events[begin : end + 1] == [1, 2, 3, 4, "read", 5, 6, 7, 8, "read", 9, 10]
    assert {event for event in events if not isinstance(event, int)} == {"read"}


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
