"""``fastdhm bench step --sweep`` from end to end."""

import json

import pytest

from fastdhm.cli import main

QUICK = ["bench", "step", "--quick", "--rounds", "1", "--device", "cpu", "--json"]


def test_a_sweep_has_every_batch_size_with_plain_torch_beside(tmp_path, capsys):
    assert main([*QUICK, "--sweep", "--threads", "1", "--out", str(tmp_path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [comparison["label"] for comparison in record["comparisons"]] == [
        f"resnet8 dhm 16x16 batch {size}, 1 thread" for size in (1, 2)
    ]
    assert all(list(comparison["peers"]) == ["fastdhm", "plain"] for comparison in record["comparisons"])
    (mark,) = record["marks"]  # of the point where plain torch is closest
    ratios = [
        of["plain"]["median_ms"] / of["fastdhm"]["median_ms"] for of in (c["peers"] for c in record["comparisons"])
    ]
    assert mark["value"]["median"] == pytest.approx(min(ratios))
    assert {path.name for path in tmp_path.iterdir()} == {"step.json", "step.csv", "step_sweep_resnet8.png"}
