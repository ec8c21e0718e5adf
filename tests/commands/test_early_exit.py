"""fastdhm eval --early-exit: at the ends of the thresholds it is one branch alone."""

import json

import pytest

from fastdhm import models
from fastdhm.cli import main
from fastdhm.engine.saved.names import EARLY_EXIT
from fastdhm.page.run import run_page

FLAGS = "--dataset synthetic:96 --arch resnet14 --batch-size 8 --max-steps 2 --loader torch --workers 0 --device cpu"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("early_exit") / "run"
    assert main(["train", *FLAGS.split(), "--precision", "float32", "--run-dir", str(run)]) == 0
    return run


def judged(run, capsys, *flags):
    assert main(["eval", str(run), "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("last", ["B0", "B1"])
def test_all_leave_at_0_and_none_at_1(run, capsys, last):
    branches = judged(run, capsys)
    nobody = judged(run, capsys, "--early-exit", "1", "--branch", last)["early_exit"]["1"]
    everybody = judged(run, capsys, "--early-exit", "0", "--branch", last)["early_exit"]["0"]
    costs = models.costs_alone("resnet14", 10, 32, ("B0", "B1", "B2"))
    assert everybody["left"] == 1 and nobody["left"] == 0
    assert (
        everybody["top1_error"] == branches["B2"]["top1_error"] and nobody["top1_error"] == branches[last]["top1_error"]
    )
    assert everybody["multiply_adds"] == costs["B2"].macs
    added = models.inventory("resnet14", 10, 32).branches
    both = {"B0": added["B0"].macs + added["B2"].macs, "B1": costs["B1"].macs + added["B2"].macs}
    assert nobody["multiply_adds"] == both[last]


def test_the_table_has_the_thresholds(run, capsys):
    assert main(["eval", str(run), "--early-exit", "0.33"]) == 0
    text = capsys.readouterr().out
    assert "0.33" in text and "0.95" in text and "leave at B2 %" in text
    page = run_page(run)
    assert "B2 answers where its probability reaches" in page and "the thresholds 0.33, 0.5" in page
    (run / EARLY_EXIT).write_text('{"first": "B2"}')
    assert "Early exit" not in run_page(run)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--early-exit", "90"], "from 0 to 1"),
        (["--early-exit", "0.9", "--branch", "B2"], "the cheapest"),
        (["--early-exit", "0.9", "--branch", "ensemble"], "unknown branch"),
    ],
)
def test_what_is_no_cascade_is_refused(run, capsys, flags, told):
    assert main(["eval", str(run), *flags]) == 2
    assert told in capsys.readouterr().err


def test_a_plain_network_has_no_cascade(run, capsys):
    assert main(["eval", str(run / "network.safetensors"), "--early-exit", "0.9"]) == 2
    assert "checkpoint with side branches" in capsys.readouterr().err
