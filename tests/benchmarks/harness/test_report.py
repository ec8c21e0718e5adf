"""What benchmarks print and write."""

import csv
import io
import json

import pytest

from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness.timing import Comparison, Result, Spread
from fastdhm.errors import UserError
from fastdhm.system.console import Console

MARK = report.Mark(name="loops over fused", where="here", value=Spread(3.0, 2.5, 3.5))


def comparison(label="2x4x8 float32", failure="loss is off by 0.5"):
    fused = Result(samples_ms=[1.0, 2.0, 3.0], calls_per_sample=4, peak_bytes=3 * 2**19)
    loops = Result(samples_ms=[3.0, 6.0, 9.0], calls_per_sample=1, peak_bytes=2**20)
    return Comparison(label=label, results={"fused": fused, "loops": loops, "broken": Result(failure=failure)})


def test_json_and_csv_hold_times_ratios_and_failures(tmp_path):
    text = report.write(tmp_path, "loss", {"settings": {"rounds": 3}}, [comparison()], [MARK])
    assert text + "\n" == (tmp_path / "loss.json").read_text()
    written = json.loads(text)
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


def test_marks_are_of_peers_that_have_a_time():
    pairs = {"loops over fused": ("loops", "fused"), "broken over fused": ("broken", "fused"), "no": ("no", "fused")}
    (mark,) = report.ratio_marks([comparison()], pairs)
    assert (mark.name, mark.where, mark.value.median) == ("loops over fused", "2x4x8 float32", 3)


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
    rows = report.write(tmp_path, "one", {}, [only_loops], [])
    assert "ratio" not in rows


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
