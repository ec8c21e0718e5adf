"""``fastdhm bench mask``: all backends give the same bits, and the command from end to end."""

import json

import pytest
import torch

from fastdhm.benchmarks import mask
from fastdhm.cli import main
from fastdhm.ops.branch_mask import branch_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize("S", mask.SIDE_BRANCHES)
def test_every_peer_passes_its_check(S):
    peers = mask.peers(S, CPU)
    assert {"auto", "eager", "bernoulli", "rand"} <= {peer.name for peer in peers}
    assert {peer.name: peer.check(peer.run()) for peer in peers} == dict.fromkeys([peer.name for peer in peers])


@pytest.mark.parametrize("wrong_step", [mask.TIMED_STEP, mask.CHECKED_STEPS[-1]], ids=["timed", "last"])
def test_other_bits_get_no_time_and_status_1(wrong_step, tmp_path, capsys, monkeypatch):
    def flipped(probs_S, seed, step, impl="auto"):
        mask_S = branch_mask(probs_S, seed, step, impl=impl)
        return ~mask_S if impl == "auto" and int(step) == wrong_step else mask_S

    monkeypatch.setattr(mask, "branch_mask", flipped)
    monkeypatch.setattr(mask, "SIDE_BRANCHES", (3,))
    assert main(["bench", "mask", "--quick", "--json", "--out", str(tmp_path)]) == 1
    peers = json.loads(capsys.readouterr().out)["comparisons"][0]["peers"]
    assert peers["auto"]["failure"]
    assert "median_ms" not in peers["auto"]
    assert peers["eager"]["median_ms"] > 0


def test_smoke_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mask, "SIDE_BRANCHES", (2, 1000))
    assert main(["bench", "mask", "--quick", "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["auto_impl"] in ("eager", "cpp")
    assert [mark["where"] for mark in record["marks"]] == ["S=2", "S=2", "S=1000", "S=1000"]
    assert {path.name for path in tmp_path.iterdir()} == {"mask.json", "mask.csv", "mask.png"}


def test_a_mistake_is_one_line(capsys):
    assert main(["bench", "mask", "--rounds", "-1"]) == 2
    assert "--rounds is -1: must be at least 1" in capsys.readouterr().err
