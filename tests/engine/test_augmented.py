"""Augmented runs: resumed, by another loader, they are the same run; every copy is a step's own."""

from fastdhm.cli import main
from runs import assert_same_state, command

FLAGS = (
    "--augment rand-2-9 --color-jitter 0.4,0.4,0.4,0.1 --random-grey 0.2 --random-erase 0.5 --repeats 2 "
    "--corrupt-labels 0.2 --method baseline --epochs 2 --crop pad --pad 2"
)
AUGMENTED = FLAGS.split()


def test_a_run_cut_in_an_epoch_goes_on_as_if_it_had_not_been_whoever_feeds_it(tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*command(whole, *AUGMENTED), "--max-steps", "12"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "rand-2-9, colours 0.4,0.4,0.4,0.1, 20% grey, 50% with a rectangle erased, each image 2 times" in plan
    assert main([*command(cut, *AUGMENTED), "--max-steps", "3"]) == 0
    assert main(["train", "--resume", str(cut), "--max-steps", "12", "--loader", "resident"]) == 0
    assert_same_state(whole / "last.pt", cut / "last.pt", same_best=False)


def test_what_is_no_policy_stops_a_run_before_it_begins(tmp_path, capsys):
    assert main(command(tmp_path / "run", "--augment", "trival")) == 2
    assert "did you mean 'trivial'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
