"""``fastdhm bench conv``: every peer is right, a wrong one gets no time, and the command from end to end."""

import json

import pytest

from fastdhm.benchmarks import conv
from fastdhm.cli import main
from fastdhm.ops import _extension
from fastdhm.ops._convolution import NAMES
from fastdhm.ops.conv3x3 import conv3x3

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))


def taken(dtype) -> bool:
    return _extension.available() and _extension.require("this test").conv3x3_width(NAMES[conv.DTYPES[dtype]]) > 0


@pytest.mark.parametrize("dtype", conv.DTYPES)
def test_every_peer_passes_its_check(dtype):
    if not taken(dtype):
        pytest.skip(f"this processor has no vector code for {dtype}")
    peers = conv.peers((4, 32, 16, 6, 5), conv.DTYPES[dtype])
    assert {peer.name: peer.check(peer.run()) for peer in peers} == dict.fromkeys(["tiles", "eager", "products"])


@pytest.mark.parametrize("dtype", conv.DTYPES)
@pytest.mark.parametrize(("kind", "of"), [((3, 2), "weights"), ((1, 1), "weights"), ((3, 2), "input")], ids=str)
def test_every_peer_of_the_gradients_passes_its_check(dtype, kind, of):
    if not taken(dtype):
        pytest.skip(f"this processor has no vector code for {dtype}")
    peers = conv.gradient_peers((4, 32, 16, 6, 5, *kind), conv.DTYPES[dtype], of)
    own = "pixels" if of == "weights" else "phases"
    assert {peer.name: peer.check(peer.run()) for peer in peers} == dict.fromkeys([own, "eager", "products"])
    sizes = {peer.run()[of].numel() for peer in peers if of == "weights" or peer.name != "products"}
    assert sizes == {16 * 32 * kind[0] ** 2 if of == "weights" else 4 * 32 * 6 * 5}


@pytest.mark.skipif(not taken("float32"), reason="this processor has no vector code for float32")
def test_a_wrong_gradient_gets_no_time_and_status_1(tmp_path, capsys, monkeypatch):
    def wrong(x, weight, **options):
        y = conv3x3(x, weight, **options)
        y.register_hook(lambda grad: 1.1 * grad)
        return y

    monkeypatch.setattr(conv, "conv3x3", wrong)
    assert main(["bench", "conv", "--dtype", "float32", "--quick", "--json", "--out", str(tmp_path)]) == 1
    peers = json.loads(capsys.readouterr().out)["comparisons"][0]["peers"]
    assert "grad_x is off by" in peers["tiles"]["failure"]
    assert "median_ms" not in peers["tiles"]
    assert peers["eager"]["median_ms"] > 0


@pytest.mark.skipif(not taken("float32"), reason="this processor has no vector code for float32")
def test_smoke_run(tmp_path, capsys):
    assert main(["bench", "conv", "--dtype", "float32", "--quick", "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {mark["name"] for mark in record["marks"]} == set(conv.MARKS)
    assert {path.name for path in tmp_path.iterdir()} == {"conv.json", "conv.csv", "conv.png"}


@pytest.mark.parametrize("flag", [("--dtype", "float16"), ("--rounds", "0")])
def test_a_mistake_is_one_line(flag, capsys):
    assert main(["bench", "conv", *flag]) == 2
    assert flag[0].lstrip("-") in capsys.readouterr().err
