"""What benchmarks print and write."""

import csv
import io
import json

import pytest
import torch
from rich.console import Console

from fastdhm.benchmarks import machine, report
from fastdhm.benchmarks.harness import Comparison, Result, Spread
from fastdhm.errors import UserError

MARK = report.Mark(name="loops over fused", where="here", value=Spread(3.0, 2.5, 3.5))


def comparison(label="2x4x8 float32", failure="loss is off by 0.5"):
    fused = Result(samples_ms=[1.0, 2.0, 3.0], calls_per_sample=4, peak_bytes=3 * 2**19)
    loops = Result(samples_ms=[3.0, 6.0, 9.0], calls_per_sample=1, peak_bytes=2**20)
    return Comparison(label=label, results={"fused": fused, "loops": loops, "broken": Result(failure=failure)})


def conclude(folder, comparisons, as_json=False):
    text = io.StringIO()
    status = report.conclude(
        "loss", comparisons, marks=[MARK], machine=machine.describe(torch.device("cpu")), settings={"rounds": 3},
        folder=folder, console=Console(file=text, width=80), as_json=as_json,
    )  # fmt: skip
    return status, text.getvalue()


def test_json_and_csv_hold_times_ratios_and_failures(tmp_path, capsys):
    status, _ = conclude(tmp_path, [comparison()], as_json=True)
    assert status == 1
    written = json.loads((tmp_path / "loss.json").read_text())
    assert json.loads(capsys.readouterr().out) == written
    assert written["settings"] == {"rounds": 3}
    assert written["marks"][0]["value"] == {"median": 3.0, "low": 2.5, "high": 3.5}
    peers = written["comparisons"][0]["peers"]
    assert peers["loops"]["time_over"]["fused"]["median"] == 3
    assert peers["fused"]["median_ms"] == 2
    assert peers["fused"]["peak_mib"] == 1.5
    assert peers["broken"] == {"failure": "loss is off by 0.5", "time_over": {}}
    with open(tmp_path / "loss.csv", newline="") as file:
        rows = {row["peer"]: row for row in csv.DictReader(file)}
    assert float(rows["loops"]["ratio"]) == 3
    assert (rows["broken"]["median_ms"], rows["broken"]["failure"]) == ("", "loss is off by 0.5")
    assert {path.name for path in tmp_path.iterdir()} == {"loss.json", "loss.csv"}


def test_status_is_0_where_every_check_passed(tmp_path):
    assert conclude(tmp_path, [comparison(failure=None)])[0] == 0
    assert conclude(tmp_path, [comparison(failure=None), comparison()])[0] == 1


def test_tables_fit_80_columns_and_say_what_is_wrong():
    text = io.StringIO()
    report.print_comparison(Console(file=text, width=80), comparison())
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:3] == ["loops", "6", "ms"] for line in lines)
    assert any(line.split() == ["broken", "no", "time"] for line in lines)
    assert "broken: WRONG, so not timed: loss is off by 0.5" in lines


def test_first_peer_may_be_the_wrong_one(tmp_path):
    results = {"fused": Result(failure="wrong"), "loops": Result(samples_ms=[1.0])}
    only_loops = Comparison(label="one", results=results)
    text = io.StringIO()
    report.print_comparison(Console(file=text, width=80), only_loops)
    assert "1 ms" in text.getvalue()
    report.plot_bars(tmp_path / "bars.png", [only_loops], "bars")
    assert conclude(tmp_path, [only_loops])[0] == 1


def test_plots_are_png_files(tmp_path):
    report.plot_bars(tmp_path / "bars.png", [comparison(), comparison("other")], "bars")
    report.plot_lines(tmp_path / "lines.png", {1: comparison(), 10: comparison()}, "lines", "classes")
    for name in ("bars.png", "lines.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.tmp"))


def test_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out is .*file/in.*cannot write there.*name another folder"):
        report.check_folder(tmp_path / "file" / "in")
    report.check_folder(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
