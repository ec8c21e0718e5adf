"""Times peers side by side: each is checked first, then all are timed in turns, in one process.

On a shared machine a single time says little, but the ratio of two times taken at the same moment says much. So the
peers run interleaved (A B C A B C ...). Each round gives one sample of each peer, and a ratio is the median of the
ratios of all rounds. A peer with a wrong result gets no time.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fastdhm.engine.fast.graphs import WARM_UP, Graphs

# A shorter sample measures what the previous peer left in the caches: after a peer that reads 30 MiB, the first calls
# of a short one take three times as long.
MIN_SAMPLE_SECONDS = 1e-2
MIN_ROUNDS = 5
# Relative to the sum of a row's magnitudes: float32 may lose what a sum over some 10,000 classes loses, the narrow
# types what one rounding of a float32 result loses.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}

Clock = Callable[[Callable[[], object], int], float]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to compute a result: the call to time, and its check, which says what is wrong (None: nothing)."""

    name: str
    run: Callable[[], dict[str, Tensor]]
    check: Callable[[dict[str, Tensor]], str | None]

    def fault(self) -> str | None:
        """What is wrong with the result of a call."""
        return self.check(self.run())


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float


@dataclass(kw_only=True)
class Result:
    """The result of one peer: a ``failure`` and no time, or the milliseconds of one call, a sample per round."""

    failure: str | None = None
    calls_per_sample: int = 0
    samples_ms: list[float] = field(default_factory=list)
    peak_bytes: int | None = 0

    @property
    def peak_mib(self) -> float | None:
        """The most memory that a call held."""
        return None if self.peak_bytes is None else self.peak_bytes / 2**20


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The results of peers that were timed in the same rounds, by name; the first is the subject of the comparison."""

    label: str
    results: dict[str, Result]

    @property
    def failures(self) -> dict[str, str]:
        return {name: result.failure for name, result in self.results.items() if result.failure is not None}

    def time_ms(self, name: str) -> Spread | None:
        """Milliseconds of one call; None for a peer that has no time."""
        samples_ms = self.results[name].samples_ms if name in self.results else []
        return spread(samples_ms) if samples_ms else None

    def median_ms(self, name: str) -> float | None:
        """The median of :meth:`time_ms`."""
        time_ms = self.time_ms(name)
        return time_ms.median if time_ms else None

    def ratio(self, name: str, to: str) -> Spread | None:
        """Time of ``name`` over time of ``to``, per round; None if either has no time."""
        if self.time_ms(name) is None or self.time_ms(to) is None:
            return None
        pairs = zip(self.results[name].samples_ms, self.results[to].samples_ms, strict=True)
        return spread([ours / theirs for ours, theirs in pairs])

    def speedup(self, name: str, to: str) -> float | None:
        """The median of :meth:`ratio`."""
        ratio = self.ratio(name, to)
        return ratio.median if ratio else None


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of ``values``."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def timed_elsewhere(label: str, failures: dict[str, str | None], seconds: dict[str, list[float]]) -> Comparison:
    """A comparison from samples in ``seconds``; a peer with a failure has no time."""
    results = {
        name: Result(
            failure=failure,
            calls_per_sample=1,
            samples_ms=[] if failure else [1e3 * sample for sample in seconds[name]],
            peak_bytes=None,
        )
        for name, failure in failures.items()
    }
    return Comparison(label=label, results=results)


def measure(
    label: str,
    peers: Sequence[Peer],
    *,
    device: torch.device,
    rounds: int,
    max_seconds: float = 30.0,
    min_sample_seconds: float = MIN_SAMPLE_SECONDS,
    clock: Clock | None = None,
    memory: bool = True,
) -> Comparison:
    """Check every peer, then time the right ones in turns.

    Args:
        label: what is compared, for tables.
        peers: the others are compared with the first.
        device: where they run; picks the clock and the way memory is counted.
        rounds: samples of each peer; fewer, but at least ``MIN_ROUNDS``, once ``max_seconds`` are over.
        max_seconds: time for the rounds together.
        min_sample_seconds: a sample repeats its call for at least this time; 0: one call.
        clock: gives the seconds of a number of calls (default: the device's clock).
        memory: also find the most bytes that a call holds; this takes one call under the profiler.
    """
    clock = clock or (cuda_seconds if device.type == "cuda" else cpu_seconds)
    _free_a_large_block()
    results = {peer.name: Result(failure=failure(peer.fault)) for peer in peers}
    right = [peer for peer in peers if results[peer.name].failure is None]
    for peer in right:
        results[peer.name].peak_bytes = peak_bytes(peer.run, device) if memory else None
        calls = _calls_per_sample(peer.run, clock, min_sample_seconds) if min_sample_seconds else 1
        results[peer.name].calls_per_sample = calls

    end = time.perf_counter() + max_seconds
    with _no_garbage_collection():
        for done in range(rounds):
            if done >= MIN_ROUNDS and time.perf_counter() > end:
                break
            for peer in right:
                result = results[peer.name]
                seconds = clock(peer.run, result.calls_per_sample)
                result.samples_ms.append(1e3 * seconds / result.calls_per_sample)
    return Comparison(label=label, results=results)


def cpu_seconds(run: Callable[[], object], calls: int) -> float:
    """Seconds that ``calls`` calls take, by the processor's clock."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def cuda_seconds(run: Callable[[], object], calls: int) -> float:
    """Seconds that ``calls`` calls take on the GPU, by its own events.

    If the host launches more slowly than the GPU computes, this is the host's time, as in training.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that one call holds at once beyond the bytes held before it, with its results.

    On the CPU the profiler reports every allocation and release of torch's allocator on the calling thread, in order
    and in bytes; their running sum is exact and the same in every call. Memory that C++ code takes by itself (a
    vector, a stack) is not in it. On CUDA it is what the caching allocator counts, its rounding to 512 bytes included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def captured(peer: Peer) -> Peer:
    """The same peer on a GPU without the host's time: its calls are replays of one call's CUDA graph."""
    graphs = Graphs()
    replays: list[Callable[[], dict[str, Tensor]]] = []

    def run() -> dict[str, Tensor]:
        if not replays:
            for _ in range(WARM_UP):
                graphs.warm_up(peer.run)
            replays.append(graphs.capture(peer.run))
        return replays[0]()

    return Peer(name=peer.name, run=run, check=peer.check)


def ops_called(run: Callable[[], object]) -> frozenset[str]:
    """The names of the operations that a call goes through."""
    run()  # warm-up: the work that only a first call does
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return frozenset(event.name for event in profile.events() if "::" in event.name)


def name_auto(run: Callable[[str], object], impls: Sequence[str]) -> str:
    """The one of ``impls`` that ``auto`` uses here: it runs the same operations."""
    wanted = ops_called(lambda: run("auto"))
    for impl in impls:
        if impl != "auto":
            try:
                if ops_called(partial(run, impl)) == wanted:
                    return impl
            except ValueError:  # not available here, so auto does not use it
                continue
    return ", ".join(sorted(name for name in wanted if name.startswith("fastdhm::"))) or "unknown"


def agrees_with(
    expected: dict[str, Tensor], tolerance: float | None = None
) -> Callable[[dict[str, Tensor]], str | None]:
    """A check that every tensor of a result agrees with the expected one of that name; see :func:`disagreement`."""

    def check(result: dict[str, Tensor]) -> str | None:
        unknown = result.keys() - expected.keys()
        if unknown or not result:
            return f"nothing to check {', '.join(sorted(unknown)) or 'an empty result'} against"
        found = ((name, disagreement(tensor, expected[name], tolerance)) for name, tensor in result.items())
        return next((f"{name} {reason}" for name, reason in found if reason), None)

    return check


def disagreement(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> str | None:
    """What is wrong with ``actual``, or None.

    Floating: in each row (the last dimension) ``sum |actual - expected| <= tolerance * sum |expected|``. The default
    tolerance depends on ``actual``'s dtype. By rows, a few wrong values count even if one elsewhere outweighs them all.
    Any other dtype: equal.
    """
    if actual.shape != expected.shape:
        return f"has shape {tuple(actual.shape)}: must be {tuple(expected.shape)}"
    actual, expected = actual.detach(), expected.detach().to(actual.device)  # large tensors are compared on the GPU
    if not actual.is_floating_point():
        return None if torch.equal(actual, expected) else "differs"
    tolerance, limits = tolerance or TOLERANCES[actual.dtype], torch.finfo(actual.dtype)
    actual, expected = torch.atleast_1d(actual.double()), torch.atleast_1d(expected.double())
    size = expected.abs().sum(-1)
    error = (actual - expected).abs().sum(-1)
    # float16 has steps of this size near 0, where gradients of many classes are
    steps = actual.shape[-1] * limits.tiny * limits.eps
    if (error <= tolerance * size + steps).all():  # written so that NaN is wrong
        return None
    worst = (error / size.clamp(min=limits.tiny)).max()
    return f"is off by {worst:.2g} of its size, tolerance {tolerance:.2g}"


@contextmanager
def threads(number: int | None) -> Iterator[int]:
    """Compute with ``number`` threads (None: as many as torch has), then with as many as before."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def failure(judge: Callable[[], str | None]) -> str | None:
    """What ``judge`` finds wrong, or the error that it raises."""
    try:
        return judge()
    except Exception as error:  # a broken peer must not lose the numbers of the others
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _calls_per_sample(run: Callable[[], object], clock: Clock, min_seconds: float) -> int:
    """The first power of two at which samples are long enough; finding it also warms up.

    Several samples must be long: a single one can be long because another process had the processor.
    """
    calls = 1
    while any(clock(run, calls) < min_seconds for _ in range(3)):
        calls *= 2
    return calls


def _free_a_large_block() -> None:
    """Bring glibc's allocator to its state in training, which frees large activations all the time.

    Until a process has freed a block of some size, malloc takes each block of that size from the kernel and gives it
    back, so every call of every peer would pay for fresh pages (0.2 ms for 3 MiB here). It learns up to 32 MiB.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8).fill_(0)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
