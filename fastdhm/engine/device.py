"""Which device, number format and compilation a run uses, decided once from what the machine has."""

import ctypes
import math
import os
import re
import resource
import shutil
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils import deterministic as _memory

from fastdhm.engine.fast.blocks import is_deep
from fastdhm.errors import UserError, counted
from fastdhm.system import processors
from fastdhm.system.place import Place, by_srun, place

# Compiling gains a few tenths of a step. On a CPU the fused norms gain as much from the first step on; on a GPU the run
# stands still for some seconds at the change, which hundreds of steps repay (a guess, not measured).
STEPS_THAT_REPAY_COMPILING = {"cpu": math.inf, "cuda": 1000}
# Processes of one run that a machine without GPUs may start.
PER_PROCESSOR, LEAST_OF_ALL = 8, 16
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
memory: Any = _memory  # Any: torch replaces this module by an object, whose setting type checkers do not see
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
# As the kernel names them: x86 and Arm processors that multiply bfloat16 matrices.
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
M = TypeVar("M", bound=torch.nn.Module)


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    return set(path.read_text("utf-8").split()) if path.exists() else set()


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA if there is a GPU. A GPU always has its index.

    Each of several processes on a machine takes a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    here = place()
    if here is not None and name.startswith("cuda"):
        name = _own_gpu(name, here)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device is {name!r}: must be auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device is {name!r}: fastdhm trains on cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device is {name!r}: torch sees {torch.cuda.device_count()} GPUs here; take --device cpu")
    if device.type == "cuda" and device.index is None:  # some of torch.cuda takes no device without one
        return torch.device("cuda", torch.cuda.current_device())
    return device


def placed(network: M, device: torch.device, layout: torch.memory_format = torch.channels_last) -> M:
    """``network`` on ``device``, its weights in ``layout``; convolutions are fastest in the default one."""
    return network.to(device, memory_format=layout)  # type: ignore[call-overload] # torch's stubs lack it


def count_gpus(name: str) -> int:
    """How many processes, each with a GPU of its own, this machine has room for on that device; 1 on a CPU."""
    return max(1, torch.cuda.device_count()) if name in ("auto", "cuda") else 1


def most_processes(name: str) -> int:
    """How many processes this machine may start on that device: to see a slip before it has no memory left."""
    gpus = torch.cuda.device_count() if name in ("auto", "cuda") else 0
    return gpus or max(LEAST_OF_ALL, PER_PROCESSOR * processors.count())


def gpu_name(device: torch.device | str) -> str:
    """What tells the GPU that a process takes from others of its machine; empty if that is not known."""
    try:
        return str(getattr(torch.cuda.get_device_properties(pick_device(str(device))), "uuid", ""))
    except UserError:  # said when the processes have met
        return ""


def _own_gpu(name: str, here: Place) -> str:
    gpus = torch.cuda.device_count()
    if ":" in name:
        raise UserError(f"device is {name!r} for {here.count} processes: say cuda, and each takes a GPU of its own")
    if here.local_count > gpus and not (gpus and by_srun()):
        raise UserError(
            f"{here.local_count} processes were started on {socket.gethostname()}, where torch sees {gpus} GPUs: "
            "start one for each GPU, or set --device cpu"
        )
    return f"cuda:{here.local_rank % gpus}"  # srun may show each of its tasks other GPUs


@contextmanager
def computing_on(device: torch.device, *, deterministic: bool = False) -> Iterator[None]:
    """Inside, ``device`` is the current one, whose streams CUDA graphs capture, and cuDNN times its algorithms.

    It times them for each new shape (a run has few) and may choose another one in the next process; a ``deterministic``
    run does not time. Does nothing on a CPU.
    """
    if device.type != "cuda":
        yield
        return
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, not deterministic
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The autocast type: ``auto`` takes bfloat16 only where the hardware computes in it, since emulation is slower."""
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if BFLOAT16_FLAGS & _cpu_flags() else torch.float32
    if name == "float16" and device.type == "cpu":
        raise UserError("precision is float16: on a CPU it must be float32 or bfloat16")
    return getattr(torch, name)


def pick_own_precision(name: str, device: torch.device) -> torch.dtype:
    """The autocast type to judge a run in: its own, which reproduces its numbers; float32 for float16 on a CPU."""
    return pick_precision("float32" if (name, device.type) == ("float16", "cpu") else name, device)


def pick_compile(name: str, device: torch.device, steps: int, model: torch.nn.Module) -> tuple[bool, str]:
    """Whether to compile, and in parentheses why ``auto`` does not.

    It decides by the number of steps and not by a clock, so a resumed run decides as the first one did.
    """
    compiler = os.environ.get("CXX", "g++")
    can_compile = shutil.which(compiler) is not None
    if name == "on" and not can_compile:
        raise UserError(f"compile is on, but there is no C++ compiler ({compiler}): install g++, or set --compile off")
    if name != "auto":
        return name == "on", ""
    reasons = {
        "no faster on a CPU": STEPS_THAT_REPAY_COMPILING[device.type] == math.inf,
        f"there is no C++ compiler, {compiler}": not can_compile,
        "so deep a network compiles for long, or by the block, whose gain is not measured": is_deep(model),
        f"{steps:,} steps do not repay it": steps < STEPS_THAT_REPAY_COMPILING[device.type],
    }
    why_not = next((reason for reason, holds in reasons.items() if holds), None)
    return why_not is None, f" ({why_not})" if why_not else ""


@contextmanager
def deterministic() -> Iterator[None]:
    """Inside, torch takes only algorithms that give the same bits every time.

    Raises:
        ValueError: an operation has no such algorithm on this device.
    """
    import torch._inductor.config

    inductor: Any = torch._inductor.config  # what it holds is another in each release
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch demands it; read at the first use of cuBLAS
    # or it chooses between kernels by timing them; older torch, such as 2.6, has no such setting
    no_timing = inductor.patch(deterministic=True) if hasattr(inductor, "deterministic") else nullcontext()
    with no_timing:
        before = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # finds reads of what nobody wrote, for a pass over all memory
        try:
            yield
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            reason = str(error).split(",")[0]
            raise UserError(f"deterministic is true, but {reason}: set --deterministic false") from error
        finally:
            mode, memory.fill_uninitialized_memory = before
            torch.set_deterministic_debug_mode(mode)


def pick_workers(workers: int | None, device: torch.device) -> int:
    """The number of loader threads or processes; ``None`` is one per processor if the step runs on a GPU, else a
    quarter of that: measured on two processors, one thread feeds the step without slowing it."""
    if workers is not None:
        return workers
    return processors.count() if device.type == "cuda" else max(1, processors.count() // 4)


def use_processors() -> None:
    """Limit torch's threads to the processors that it may use; what the user set in ``OMP_NUM_THREADS`` stays.

    torch knows the affinity mask but no quota: with two threads on a quota of one processor, ResNet-8 trains at an
    eighth of the speed of one thread. Only for the command line: in a user's program, threads are the user's choice.
    """
    too_many = torch.get_num_threads() > processors.count()
    if processors.asked() is None and (too_many or processors.of_torchrun()):
        torch.set_num_threads(processors.count())


def describe_threads() -> str:
    """``2 threads``, for a person, and what limits them if the user did not."""
    threads = torch.get_num_threads()
    return counted(threads, "thread") + (processors.why() if threads == processors.count() else "")


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, because every step asks for the same memory again; other C libraries: nothing.

    By default it returns large blocks to the kernel and gets them anew, page by page and zeroed: 15,000 page faults a
    step of ResNet-20 at batch 128, 6% of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Some glibc versions accept at most 32 MiB. If even that is refused, set nothing: any call would stop the threshold
    # from growing by itself, and at its initial 128 KiB more memory would go back to the kernel than without a call.
    if mallopt is not None and (mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)):
        mallopt(M_TRIM_THRESHOLD, -1)  # no limit: the activations of a step of ResNet-50 are gigabytes


def give_back_freed_memory() -> None:
    """Have glibc return the freed memory that it kept to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to ``dtype``; float32 is no autocast."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def restart_peak(device: torch.device) -> bool:
    """Begin to measure :func:`peak_mib`; False if the kernel does not let a process do so (on a CPU)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR_REFS.write_text("5", "utf-8")  # proc(5): the high-water mark becomes what is resident now
    except OSError:
        return False
    return True


def peak_mib(device: torch.device) -> float:
    """The most memory in use since :func:`restart_peak`, in MiB: tensors on a GPU, the resident process on a CPU.

    If the kernel could not restart the count, the process is measured since its start.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        kib = re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text("utf-8"), re.MULTILINE)
    except OSError:
        kib = None
    return (int(kib[1]) if kib else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**10
