"""The page of a comparison, from results that fastdhm wrote, and what is refused."""

import json
import shutil

import pytest
from source_tree import ROOT

from fastdhm.cli import main
from fastdhm.page.comparison import comparison_page

RESULTS = ROOT / "benchmarks/results/glyphs100/results.json"


def test_a_page_has_means_runs_and_curves(tmp_path):
    shutil.copy(RESULTS, tmp_path)
    log = tmp_path / "runs/dhm-seed0/log.jsonl"
    log.parent.mkdir(parents=True)
    row = {"kind": "epoch", "step": 1, "epoch": 1.0, "val_side": 32, "val_error/B0": 50.0}
    log.write_text(json.dumps(row) + "\n")
    text = comparison_page(tmp_path)
    results = json.loads(RESULTS.read_text())
    count, mean = len(results["runs"]), results["summary"][0]["mean"]
    for part in (
        f"{count} of {count} runs finished",
        f"{mean:.2f}",
        "baseline-seed0",
        "top-1 error of B0",
        "B0 top-1 %",
    ):
        assert part in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"title": 1, "summary": [], "runs": [3]}'], ids=str)
def test_results_that_are_none_are_refused(tmp_path, capsys, text):
    (tmp_path / "results.json").write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    assert "does not hold the results of a comparison" in capsys.readouterr().err
