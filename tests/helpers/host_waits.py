"""What in the training loop waits for the device: whatever would on a GPU is noted, in a whole run of `fit`."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional

from fastdhm.engine import distributed, evaluate, run, sums, train, validation
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


def watch(patch) -> list:
    """Gets what the loop does, in order: a step's number, "read" where `record.to_host` does, else a wait.

    ``patch`` is pytest's MonkeyPatch.
    """
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

        patch.setattr(data.train, "epoch", counted_epoch)
        with within("fit"), _Methods(note), _Ops(note):
            fit(run, data, *rest)

    def allow(module, name):
        function = getattr(module, name)

        def allowed(*args, **options):
            with within(name):
                return function(*args, **options)

        patch.setattr(module, name, allowed)

    allow(validation, "evaluate")  # waits as often as it likes
    allow(branch_mask, "_check")  # these two read values on a CPU only
    allow(mimic_loss, "check_values")
    allow(distributed.Agreed, "__call__")  # of numbers on the host
    allow(functional, "autocontrast")  # fills where a mask is, by one value of the host's
    allow(functional, "adjust_hue")  # copies a small table, without waiting for it
    allow(FusedForward, "_trace")  # once for each set of branches, and on a CPU only
    for module in (record, run, evaluate, sums):
        patch.setattr(module, "to_host", counted_to_host)
    patch.setattr(sums.TrainingSums, "add", counted_add)
    patch.setattr(train, "fit", counted_fit)
    return seen
