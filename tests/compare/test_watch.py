"""What is shown of runs in other processes, read from their logs."""

import io
import json

import pytest

from fastdhm.compare import watch
from fastdhm.compare.arms import split_methods
from fastdhm.compare.jobs import find_jobs
from fastdhm.compare.plan import compare_methods
from fastdhm.engine.saved.checkpoint import write_config
from fastdhm.system.console import Console


@pytest.fixture
def jobs(tmp_path):
    return find_jobs(compare_methods(split_methods("baseline,dhm"), (0,), {"dataset": "synthetic:40"}), tmp_path)


def test_where_no_line_can_be_drawn_over_each_run_has_one_now_and_then(jobs, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_SECONDS", -1.0)
    monkeypatch.setattr(watch, "PLAIN_LINES_SECONDS", -1.0)
    job, said = jobs[1], io.StringIO()
    row = {"kind": "step", "step": 3, "epoch": 1.5, "loss": 2.0, "images_per_s": 1234.0}
    with watch.Watch(Console(file=said, width=200), jobs, 2) as seen:
        seen.begun(job, "GPU 1")
        seen.look()
        job.folder.mkdir(parents=True)
        write_config(job.folder, job.config)
        (job.folder / "log.jsonl").write_text(f"{json.dumps(row)}\n" + '{"kind": "step", "st', "utf-8")
        seen.look()
        assert seen.ended(job.name).open
    lines = said.getvalue().splitlines()
    assert lines[0] == "dhm-seed0: begins (GPU 1)"
    assert "dhm-seed0: GPU 1  starting" in lines
    assert f"dhm-seed0: GPU 1  epoch 1.50/{job.config.epochs}  loss 2.000  1,234 img/s" in lines
    assert any(line.startswith("0 of 2 runs done, ") for line in lines)
