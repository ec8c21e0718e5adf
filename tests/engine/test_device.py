"""Choices made from what the machine has."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fastdhm import models
from fastdhm.engine import device as choices
from fastdhm.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return models.build("resnet8", 10)


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "steps", "why_not"),
    [(CPU, 100_000, "no faster on a CPU"), (CUDA, 10, "10 steps do not repay it"), (CUDA, 100_000, None)],
)
def test_auto_compiles_only_what_repays_it(model, device, steps, why_not):
    assert choices.pick_compile("auto", device, steps, model) == (not why_not, f" ({why_not})" if why_not else "")
    assert choices.pick_compile("on", device, steps, model) == (True, "")
    assert choices.pick_compile("off", device, steps, model) == (False, "")


@pytest.mark.parametrize("known", [True, False], ids=["torch now", "torch 2.6"])
def test_a_deterministic_run_needs_no_setting_of_the_compiler_that_older_torch_lacks(monkeypatch, known):
    config = torch._inductor.config
    if not known:
        monkeypatch.setattr(torch._inductor, "config", SimpleNamespace())
    elif not hasattr(config, "deterministic"):
        pytest.skip(f"torch {torch.__version__} has no such setting")
    before, setting = torch.get_deterministic_debug_mode(), getattr(config, "deterministic", None)
    with choices.deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        assert not known or config.deterministic
    assert torch.get_deterministic_debug_mode() == before
    assert getattr(config, "deterministic", None) == setting


def test_very_deep_networks_are_not_compiled_by_themselves():
    with torch.device("meta"):
        deep = models.build("resnet1202", 10)
    compiled, why_not = choices.pick_compile("auto", CUDA, 100_000, deep)
    assert not compiled and "so deep a network compiles for long" in why_not


def test_without_a_compiler_auto_does_without_and_on_says_so(model, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert choices.pick_compile("auto", CUDA, 100_000, model) == (
        False,
        " (there is no C++ compiler, no-such-compiler)",
    )
    with pytest.raises(ValueError, match="no C\\+\\+ compiler \\(no-such-compiler\\).*--compile off"):
        choices.pick_compile("on", CPU, 10, model)


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_a_gpu_is_named_by_its_index(monkeypatch, name):
    """Without one, torch's limit of a process's memory raises, and streams are those of whichever GPU is current."""
    for function, value in (("is_available", True), ("device_count", 2), ("current_device", 0)):
        monkeypatch.setattr(torch.cuda, function, lambda value=value: value)
    index = choices.pick_device(name).index
    assert index == (1 if name == "cuda:1" else 0)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_computes_on_its_gpu_and_cudnn_times_its_algorithms(monkeypatch, deterministic):
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
    assert not torch.backends.cudnn.benchmark
    with choices.computing_on(torch.device("cuda", 1), deterministic=deterministic):
        assert torch.backends.cudnn.benchmark is not deterministic
    assert entered == [torch.device("cuda", 1)] and not torch.backends.cudnn.benchmark
    with choices.computing_on(CPU):
        assert not torch.backends.cudnn.benchmark and len(entered) == 1


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu sse2 avx512f avx512_vnni", torch.float32),
        ("avx512f avx512_bf16", torch.bfloat16),
        ("amx_bf16", torch.bfloat16),
    ],
)
def test_bfloat16_only_where_the_processor_computes_in_it(monkeypatch, flags, dtype):
    monkeypatch.setattr(choices, "_cpu_flags", lambda: set(flags.split()))
    assert choices.pick_precision("auto", CPU) == dtype
    assert choices.pick_precision("float32", CPU) == torch.float32


def test_loader_workers_leave_a_cpu_step_its_cores(monkeypatch):
    monkeypatch.setattr(choices.processors, "count", lambda: 16)
    assert choices.pick_workers(None, CPU) == 4
    assert choices.pick_workers(None, torch.device("cuda")) == 16
    assert choices.pick_workers(0, CPU) == 0


@pytest.mark.parametrize(
    ("most", "calls"),
    [(2**30, [(-3, 2**30), (-1, -1)]), (2**25, [(-3, 2**30), (-3, 2**25), (-1, -1)]), (0, [(-3, 2**30), (-3, 2**25)])],
)
def test_freed_memory_is_kept_only_where_the_threshold_can_be_set(monkeypatch, most, calls):
    seen = []

    class Library:
        def __init__(self, _):
            pass

        def mallopt(self, option, value):
            seen.append((option, value))
            return int(value <= most)

    monkeypatch.setattr(choices.ctypes, "CDLL", Library)
    choices.keep_freed_memory()
    assert seen == calls


def test_the_peak_of_a_run_is_not_that_of_one_before_it_in_the_process(monkeypatch, tmp_path):
    """200 MiB that are given back; where the kernel does not count anew, that is told."""
    choices.give_back_freed_memory()  # what earlier tests left would be used again
    if not choices.restart_peak(CPU):
        pytest.skip("the kernel does not let this process count its peak anew")
    before = choices.peak_mib(CPU)
    torch.ones(50, 2**20)
    assert choices.peak_mib(CPU) > before + 150
    choices.give_back_freed_memory()
    assert choices.restart_peak(CPU) and choices.peak_mib(CPU) < before + 100
    monkeypatch.setattr(choices, "CLEAR_REFS", tmp_path / "no folder" / "clear_refs")
    assert not choices.restart_peak(CPU)
    monkeypatch.setattr(choices, "STATUS", tmp_path / "none")
    assert choices.peak_mib(CPU) > 0


TASK = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4"}


@pytest.mark.parametrize(
    ("environ", "gpus", "expected"),
    [
        (TASK, 4, "cuda:1"),
        (TASK, 1, "4 processes were started on .*, where torch sees 1 GPUs: start one for each GPU"),
        (SRUN | {"SLURM_STEP_ID": "0"}, 4, "cuda:1"),
        (SRUN | {"SLURM_STEP_ID": "0"}, 1, "cuda:0"),  # --gpus-per-task=1: each task sees its own as the first
    ],
    ids=["torchrun", "torchrun on too few", "srun", "srun, a GPU for each task"],
)
def test_each_process_takes_a_gpu_of_its_own(monkeypatch, environ, gpus, expected):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PTY_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected.startswith("cuda"):
        assert str(choices.pick_device("cuda")) == expected
    else:
        with pytest.raises(UserError, match=expected):
            choices.pick_device("cuda")
