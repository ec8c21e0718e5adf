"""``fastdhm bench norm``: every peer is right, a wrong one gets no time, and the command from end to end."""

import json

import pytest

from fastdhm.benchmarks import norm
from fastdhm.cli import main
from fastdhm.ops import _extension
from fastdhm.ops.batch_norm_act import batch_norm_act

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))


@pytest.mark.parametrize("dtype", norm.DTYPES.values(), ids=str)
def test_every_peer_passes_its_check(dtype):
    peers = norm.peers((8, 24, 6, 5), dtype, compiling=False)
    assert {peer.name: peer.check(peer.run()) for peer in peers} == dict.fromkeys(["fused", "eager", "copies"])


def test_a_wrong_gradient_gets_no_time_and_status_1(tmp_path, capsys, monkeypatch):
    def wrong(x, *args, **options):
        y = batch_norm_act(x, *args, **options)
        y.register_hook(lambda grad: 1.1 * grad)
        return y

    monkeypatch.setattr(norm, "batch_norm_act", wrong)
    assert main(["bench", "norm", "--quick", "--json", "--out", str(tmp_path)]) == 1
    peers = json.loads(capsys.readouterr().out)["comparisons"][0]["peers"]
    assert "grad_x is off by" in peers["fused"]["failure"]
    assert "median_ms" not in peers["fused"]
    assert peers["eager"]["median_ms"] > 0


def test_smoke_run(tmp_path, capsys):
    assert main(["bench", "norm", "--quick", "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {mark["name"] for mark in record["marks"]} == {"eager over fused", "fused over the copies"}
    assert {path.name for path in tmp_path.iterdir()} == {"norm.json", "norm.csv", "norm.png"}


@pytest.mark.parametrize("flag", [("--dtype", "float16"), ("--compiled", "maybe"), ("--rounds", "0")])
def test_a_mistake_is_one_line(flag, capsys):
    assert main(["bench", "norm", *flag]) == 2
    assert flag[0].lstrip("-") in capsys.readouterr().err
