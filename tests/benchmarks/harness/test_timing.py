"""The harness: what is wrong gets no time, peers run in turns, ratios are taken within a round."""

import importlib
import os

import pytest
import torch

from fastdhm import benchmarks
from fastdhm.benchmarks.harness import machine
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.timing import Comparison, Peer, Result

CPU = torch.device("cpu")
VALUE = torch.arange(6.0).reshape(2, 3)


def peer(name, run=lambda: {"value": VALUE}):
    return Peer(name=name, run=run, check=harness.agrees_with({"value": VALUE.double()}))


def raises():
    raise RuntimeError("out of order")


def test_peers_run_in_turns():
    called = []

    def run(name):
        called.append(name)
        return {"value": VALUE}

    peers = [peer(name, lambda name=name: run(name)) for name in "ABC"]
    harness.measure("turns", peers, device=CPU, rounds=4, min_sample_seconds=0)
    assert "".join(called[-12:]) == "ABCABCABCABC"


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda: {"value": VALUE + 0.01}, "value is off by"),
        (lambda: {"value": VALUE * float("nan")}, "value is off by nan"),
        (lambda: {"value": VALUE[0]}, "has shape"),
        (lambda: {"valeu": VALUE}, "nothing to check valeu"),
        (dict, "nothing to check an empty result"),
        (raises, "RuntimeError: out of order"),
    ],
    ids=["off", "nan", "shape", "unknown-name", "empty", "raises"],
)
def test_a_wrong_peer_gets_no_time(run, reason):
    comparison = harness.measure("check", [peer("right"), peer("wrong", run)], device=CPU, rounds=2)
    assert reason in comparison.failures["wrong"]
    assert comparison.time_ms("wrong") is None
    assert comparison.ratio("right", to="wrong") is None
    assert "right" not in comparison.failures
    assert comparison.time_ms("right").median > 0


def test_a_sample_repeats_short_calls():
    cost = {"short": 1e-4, "long": 0.5}  # seconds of a call

    def clock(run, calls):
        return cost[run()["name"]] * calls

    peers = [Peer(name=n, run=lambda n=n: {"name": n}, check=lambda result: None) for n in cost]
    comparison = harness.measure("calls", peers, device=CPU, rounds=1, min_sample_seconds=1e-3, clock=clock)
    assert {name: result.calls_per_sample for name, result in comparison.results.items()} == {"short": 16, "long": 1}
    assert comparison.time_ms("short").median == pytest.approx(0.1)
    assert comparison.time_ms("long").median == pytest.approx(500)


def test_a_ratio_is_taken_within_each_round():
    """The machine gets three times slower from the second round on: the times tell of that, the ratio does not."""
    slow = [1, 3, 3, 3, 3]
    results = {"A": Result(samples_ms=[2.0 * s for s in slow]), "B": Result(samples_ms=[4.0 * s for s in slow])}
    results["C"] = Result(samples_ms=[2.0, 4.0, 6.0, 8.0, 10.0])
    comparison = Comparison(label="drift", results=results)
    ratio = comparison.ratio("B", to="A")
    assert (ratio.low, ratio.median, ratio.high) == (2, 2, 2)
    assert comparison.time_ms("A").median == 6
    spread = comparison.time_ms("C")
    assert (spread.low, spread.median, spread.high) == (4, 6, 8)
    assert comparison.ratio("A", to="nobody") is None


def test_rounds_end_when_the_time_is_over():
    comparison = harness.measure("late", [peer("A")], device=CPU, rounds=99, max_seconds=0, min_sample_seconds=0)
    assert len(comparison.results["A"].samples_ms) == harness.MIN_ROUNDS


def test_a_captured_peer_is_checked_by_its_replay(monkeypatch):
    """A graph that stands in: its replay gives what the capture does, and warm-up comes before."""
    calls = []

    class Graphs:
        def warm_up(self, function):
            calls.append("warm")
            return function()

        def capture(self, function):
            calls.append("capture")
            return lambda: calls.append("replay") or function()

    monkeypatch.setattr(harness, "Graphs", Graphs)
    graph = harness.captured(peer("A"))
    assert graph.check(graph.run()) is None and graph.check(graph.run()) is None
    assert calls == ["warm"] * 3 + ["capture", "replay", "replay"]


@pytest.mark.parametrize("dtype", harness.TOLERANCES, ids=str)
def test_a_result_is_held_to_its_own_dtype(dtype):
    expected = torch.randn(5, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert harness.disagreement(expected.to(dtype), expected) is None
    wrong = expected.clone()
    wrong[3] *= 1 + 3 * harness.TOLERANCES[dtype]
    assert "is off by" in harness.disagreement(wrong.to(dtype), expected)


def test_a_missing_tail_is_seen_beside_a_large_value():
    expected = torch.full((4, 1001), 1e-3)
    expected[:, 0] = 1
    wrong = expected.clone()
    wrong[2, -1] = 0
    assert "is off by" in harness.disagreement(wrong, expected.double())


def test_masks_must_be_equal():
    mask = torch.tensor([True, False])
    assert harness.disagreement(mask, mask.clone()) is None
    assert harness.disagreement(mask, ~mask) == "differs"


def test_peak_memory_is_exact():
    mib = 2**20

    def run():
        freed = torch.empty(mib, dtype=torch.uint8)
        kept = torch.empty(2 * mib, dtype=torch.uint8)
        del freed
        return kept, torch.empty(4 * mib, dtype=torch.uint8)

    held = torch.empty(8 * mib, dtype=torch.uint8)
    assert harness.peak_bytes(run, CPU) == harness.peak_bytes(run, CPU) == 6 * mib
    assert harness.peak_bytes(lambda: held.zero_(), CPU) == 0


@pytest.mark.gpu
def test_peak_memory_and_time_on_a_gpu():
    device = torch.device("cuda")
    held = torch.empty(2**20, dtype=torch.uint8, device=device)
    assert harness.peak_bytes(held.clone, device) == 2**20
    assert harness.cuda_seconds(held.clone, 10) > 0


def test_auto_is_identified_by_the_operations_it_calls():
    def run(impl):
        if impl == "missing":
            raise ValueError("not available")
        return VALUE.exp() if impl == "exp" else VALUE.log1p()

    assert harness.name_auto(run, ("auto", "missing", "exp", "log")) == "log"
    assert harness.name_auto(run, ("auto", "missing", "exp")) == "unknown"


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with harness.threads(before + 1) as number:
        assert number == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with harness.threads(None) as number:
        assert number == before


@pytest.mark.parametrize(
    ("load", "threads", "is_busy"), [(0.2, 2, False), (1.4, 1, False), (1.4, 2, True), (3, 1, True)]
)
def test_a_busy_machine_is_told(load, threads, is_busy):
    assert (machine.busy(load, processors=2, threads=threads) is not None) == is_busy


def test_the_machine_is_described():
    about = machine.describe(CPU, 3)
    assert about["threads"] == 3
    assert about["torch"] == torch.__version__
    assert about["cpu"]
    assert about["gpu"] is None


def test_no_processor_is_forced_on_blas(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    importlib.reload(benchmarks)
    assert "OPENBLAS_CORETYPE" not in os.environ
