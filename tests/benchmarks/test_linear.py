"""``fastdhm bench linear``: every peer is right, a wrong one gets no time, and the command from end to end."""

import json

import pytest
import torch

from fastdhm.benchmarks.reference import linear_peers
from fastdhm.cli import main
from fastdhm.ops import _extension

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))


@pytest.mark.parametrize("dtype", linear_peers.PRODUCTS)
def test_every_peer_passes_its_check(dtype):
    case = linear_peers.Case((3, 60, 70), 9, dtype, torch.device("cpu"), chunk_mib=3 * 50 * 70 * 8 / 2**20)
    peers, left_out = case.peers(compiled=False)
    names = ["fused", "whole", "chunked", "eager", "products"]
    assert {peer.name: peer.fault() for peer in peers} == dict.fromkeys(names) and not left_out


def test_a_wrong_gradient_gets_no_time_and_status_1(tmp_path, capsys, monkeypatch):
    right = linear_peers.linear_mimic_loss

    def wrong(features, *args, **options):
        loss, terms_MM = right(features, *args, **options)
        return loss + 1e-3 * features[2].sum(), terms_MM

    monkeypatch.setattr(linear_peers, "linear_mimic_loss", wrong)
    assert main(["bench", "linear", "--quick", "--json", "--out", str(tmp_path)]) == 1
    peers = json.loads(capsys.readouterr().out)["comparisons"][0]["peers"]
    assert "is off by" in peers["fused"]["failure"] and "median_ms" not in peers["fused"]
    assert peers["whole"]["median_ms"] > 0


def test_smoke_run(tmp_path, capsys):
    assert main(["bench", "linear", "--quick", "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    names = {mark["name"] for mark in record["marks"]}
    assert {"fused over the whole logits", "memory beyond inputs and gradients, of the whole's"} <= names
    assert {path.name for path in tmp_path.iterdir()} == {"linear.json", "linear.csv", "linear.png"}


def test_what_does_not_fit_is_left_out_or_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(linear_peers.machine, "free_bytes", lambda _: 60_000)
    assert main(["bench", "linear", "--quick", "--json", "--shape", "3x64x50", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "eager is left out at 3x64x50" in output.err
    assert "eager" not in json.loads(output.out)["comparisons"][0]["peers"]
    assert main(["bench", "linear", "--shape", "3x64x50000", "--features", "64"]) == 2
    assert "--shape is 3x64x50000: its heads and gradients need about 0.1 GiB" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [("--dtype", "float16"), ("--compiled", "maybe"), ("--features", "0")])
def test_a_mistake_is_one_line(flag, capsys):
    assert main(["bench", "linear", *flag]) == 2
    assert flag[0].lstrip("-") in capsys.readouterr().err
