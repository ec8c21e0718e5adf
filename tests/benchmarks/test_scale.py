"""``fastdhm bench scale``: the ring's arithmetic, processes that fail, and the command from end to end."""

import json

import pytest

from fastdhm.benchmarks import scale
from fastdhm.benchmarks.harness.frame import Frame
from fastdhm.benchmarks.reference.contender import make_config
from fastdhm.benchmarks.reference.shared_gradients import WAYS
from fastdhm.benchmarks.scale import Crew, Ring
from fastdhm.cli import main
from fastdhm.errors import UserError

SMALL = ["--quick", "--device", "cpu", "--precision", "float32", "--threads", "1"]


def test_a_ring_on_paper():
    ring = Ring(gradient_bytes=800, images_per_s=10, batch_size=3, bandwidth=100, latency=0.5)
    assert ring.seconds(1) == 0
    assert ring.seconds(4) == pytest.approx(2 * 3 * (200 / 100 + 0.5))  # a quarter at a time, there and back
    assert ring.waited(4) == pytest.approx(15 - 0.2)  # a step takes 0.3 s, its backward pass two thirds of it
    assert ring.row(1) == ["3", "0.0 ms", "0.0 ms", "10", "100%"]
    assert ring.row(4)[3:] == ["1", "2%"]


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--processes", "1"], "--processes is 1: must be at least 2"),
        (["--batch-size", "7"], "--batch-size is 7: must be a multiple of the 2 processes"),
        (["--bandwidth", "0"], "--bandwidth is 0: must be above 0"),
        (["--gpu-batch", "0"], "--gpu-batch is 0: must be at least 1"),
    ],
)
def test_flags_that_cannot_be(flags, rule, capsys):
    assert main(["bench", "scale", *SMALL, *flags]) == 2
    assert rule in capsys.readouterr().err


def test_a_process_that_ends_says_why(tmp_path):
    config = make_config("resnet8", 16, 4, device="cpu", precision="float32")
    with Crew(Frame("scale", out=tmp_path), config, 1, ["nothing"]) as crew, pytest.raises(UserError, match="KeyError"):
        crew.ask("check")


@pytest.mark.slow
def test_smoke_run(tmp_path, capsys):
    """Every way to share gradients is right, and both questions get an answer."""
    assert main(["bench", "scale", *SMALL, "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    sampled, many = record["comparisons"]
    assert {name for name, peer in sampled["peers"].items() if peer["median_ms"] > 0} == set(WAYS)
    assert {"2 processes", "1 process", "1/2 of it"} <= set(many["peers"])
    assert {path.name for path in tmp_path.iterdir()} == {"scale.json", "scale.csv", "scale.png"}


@pytest.mark.slow
def test_a_way_that_is_wrong_gets_no_time(tmp_path, capsys, monkeypatch):
    """Processes that share nothing end at other weights, whatever their way is called."""
    monkeypatch.setattr(scale, "WAYS", {"after": None, "fastdhm": None})
    monkeypatch.setattr(scale.Crew, "COMMAND", ("-c", WRONG))
    assert main(["bench", "scale", *SMALL, "--json", "--out", str(tmp_path)]) == 1
    peers = json.loads(capsys.readouterr().out)["comparisons"][0]["peers"]
    assert "off by" in peers["fastdhm"]["failure"]
    assert peers["after"]["median_ms"] > 0


WRONG = """
import sys
from fastdhm.benchmarks.reference import shared_gradients, worker
shared_gradients.WAYS["fastdhm"] = shared_gradients.WAYS["alone"]
worker.main(sys.argv[1], sys.argv[2:])
"""
