"""``fastdhm bench loss``: its oracle, its peers, and the command from end to end.

Legend: M branches, B batch, K classes.
"""

import json
import subprocess
import sys

import pytest
import torch

from fastdhm.benchmarks import loss
from fastdhm.benchmarks.harness import frame
from fastdhm.benchmarks.reference import loss_peers
from fastdhm.benchmarks.reference.loss_peers import DTYPES, Case, label, oracle, parse_shape
from fastdhm.cli import main
from fastdhm.errors import UserError
from fastdhm.methods import weight_matrix
from fastdhm.ops.mimic_loss import mimic_loss

CPU = torch.device("cpu")


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("fastdhm: error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 4, 1), (2, 5, 7), (3, 33, 100)], ids=label)
def test_every_peer_gives_the_oracles_result(shape, dtype):
    peers = Case(shape, dtype, CPU).peers(compiled=False)
    assert [peer.name for peer in peers] == ["fused", "labels", "forward", "loops", "eager", "softmax", "copy"]
    assert {peer.name: peer.check(peer.run()) for peer in peers} == dict.fromkeys([peer.name for peer in peers])


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_peer_gives_the_oracles_result():
    (compiled,) = [peer for peer in Case((2, 5, 7), "float32", CPU).peers(compiled=True) if peer.name == "compiled"]
    assert compiled.check(compiled.run()) is None


def test_oracle_in_parts_is_the_oracle(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    logits_MBK = torch.randn(3, 11, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    target_B = torch.randint(7, (11,), generator=generator)
    weights_MM = weight_matrix("dhm", 3)
    expected, terms_MM = mimic_loss(logits_MBK, target_B, weights_MM, impl="eager")
    expected.backward()
    monkeypatch.setattr(loss_peers, "ORACLE_ROWS", 4)
    parts = oracle(logits_MBK.detach(), target_B, weights_MM)
    torch.testing.assert_close(parts["loss"], expected.detach())
    torch.testing.assert_close(parts["terms"], terms_MM)
    torch.testing.assert_close(parts["gradient"], logits_MBK.grad)
    torch.testing.assert_close(parts["gradient of B2"], logits_MBK.grad[2])


def test_smoke_run(tmp_path, capsys):
    assert main(["bench", "loss", "--quick", "--sweep", "--json", "--threads", "1", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "loss.json").read_text())
    assert record["settings"]["fused_impl"] in ("eager", "cpp", "triton")
    assert record["machine"]["threads"] == 1
    assert record["comparisons"][0]["peers"]["fused"]["median_ms"] > 0
    assert {mark["name"] for mark in record["marks"]} == {
        "loops over fused", "fused over softmax", "fused over copy", "forward alone over softmax",
        "memory beyond logits and gradient", "mixed and weighted labels over fused",
        "growth from M = 2 to M = 8", "bfloat16 over float32",
    }  # fmt: skip
    plots = {"loss.png", "loss_branches.png", "loss_classes.png"}
    assert {path.name for path in tmp_path.iterdir()} == plots | {"loss.json", "loss.csv"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in plots)


def test_wrong_op_gets_no_time_and_status_1(tmp_path, capsys, monkeypatch):
    def slightly_off(*args, impl="auto", **labels):
        value, terms_MM = mimic_loss(*args, impl=impl, **labels)
        return (1.001 * value if impl == "auto" else value), terms_MM

    monkeypatch.setattr(loss_peers, "mimic_loss", slightly_off)
    assert main(["bench", "loss", "--shape", "2x4x5", "--rounds", "1", "--json", "--out", str(tmp_path)]) == 1
    output = capsys.readouterr()
    record = json.loads(output.out)
    peers = record["comparisons"][0]["peers"]
    assert "median_ms" not in peers["fused"]
    assert "loss is off by 0.001" in peers["fused"]["failure"]
    assert peers["eager"]["failure"] is None
    assert "fused: WRONG, so not timed" in output.err
    assert not [mark for mark in record["marks"] if "fused" in mark["name"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--shape 3x256", "'3x256': must be branches x batch x classes, such as 3x256x1000"),
        ("--shape 3x-1x5", "must be branches x batch x classes"),
        ("--shape 3x0x10", "'3x0x10': branches, batch and classes must each be at least 1"),
        ("--shape 99999x99999x99999", "GiB are free. Give a smaller shape"),
        ("--dtype int8", "unknown value of --dtype 'int8' (known: float32"),
        ("--dtype bfloat", "did you mean 'bfloat16'?"),
        ("--compiled maybe", "unknown value of --compiled 'maybe'"),
        ("--rounds 0", "--rounds is 0: must be at least 1"),
        ("--threads 0", "--threads is 0: must be at least 1"),
        ("--rounds many", "rounds is many: must be a whole number"),
        ("--device tpu", "device is 'tpu'"),
        ("--out /dev/null/bench", "--out is /dev/null/bench: cannot write there"),
        ("--shapes 3x256x1000", "unrecognized arguments: --shapes"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_a_mistake_is_one_line(flags, message, tmp_path, capsys):
    out = [] if "--out" in flags else ["--out", str(tmp_path)]
    assert main(["bench", "loss", *flags.split(), *out]) == 2
    assert message in one_line(capsys)


def test_unknown_benchmark(capsys):
    assert main(["bench", "los"]) == 2
    assert "unknown bench command 'los'; did you mean 'loss'?" in one_line(capsys)


def test_shape_survives_its_label():
    assert parse_shape(label((3, 256, 1000))) == (3, 256, 1000)


@pytest.mark.parametrize(
    ("compiled", "grid", "shapes"),
    [
        ("auto", loss.GRID, loss.COMPILED), ("on", loss.GRID, loss.GRID), ("off", loss.GRID, ()),
        ("auto", ((2, 3, 4),), ()), ("on", ((2, 3, 4),), ((2, 3, 4),)), ("auto", loss.QUICK, ()),
    ],
    ids=["grid", "grid-on", "grid-off", "shape", "shape-on", "quick"],
)  # fmt: skip
def test_what_is_compiled(compiled, grid, shapes, monkeypatch):
    monkeypatch.setattr(frame.shutil, "which", lambda name: "/usr/bin/c++")
    assert loss.which_to_compile(compiled, grid)[0] == shapes


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(frame.shutil, "which", lambda name: None)
    chosen, note = loss.which_to_compile("auto", loss.GRID)
    assert chosen == ()
    assert "no C++ compiler" in note
    with pytest.raises(UserError, match=r"--compiled is on, but there is no C\+\+ compiler"):
        loss.which_to_compile("on", loss.GRID)


def test_the_command_line_alone_loads_no_benchmark():
    program = "import sys, fastdhm.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "matplotlib", "rich"} & set(run.stdout.split())
