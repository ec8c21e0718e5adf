"""What a person is told at the end of a run."""

from fastdhm.config import TrainConfig
from fastdhm.engine.report import print_report
from fastdhm.system.console import Console


def test_the_last_table_says_that_the_best_epoch_flatters(capsys):
    rows = [
        {"kind": "epoch", "epoch": n, "step": n, "val_side": 32, "val_error/B0": error, "val_top5_error/B0": 1.0}
        for n, error in ((1, 20.0), (2, 30.0))
    ]
    print_report(Console(), rows, TrainConfig(dataset="folder:cats", keep="best"), ("B0",), "the process")
    text = capsys.readouterr().out
    assert "validation error after 2 epochs, on val of cats" in text and "test error" not in text
    assert "best epoch is chosen on these images" in text and "the network kept is of it" in text
