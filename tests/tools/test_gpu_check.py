"""The prepared run on a GPU: limits hold, one stage stops no other, the page says what was and what was not."""

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import gpu_check  # noqa: E402
import gpu_page  # noqa: E402
import gpu_stages  # noqa: E402

MACHINE = {"device": "cuda", "versions": {"torch": "2.11.0"}}


@pytest.fixture
def run(tmp_path):
    record = {"machine": MACHINE, "missing": [], "stages": {}}
    made = gpu_check.Run("cpu", tmp_path / "out", tmp_path / "work", 0.2, record=record)
    made.out.mkdir()
    made.tree.mkdir(parents=True)
    return made


def stage(name, does, weight=1.0):
    return gpu_check.Stage(name, f"the stage {name}", weight, does)


def test_a_stage_that_breaks_or_fails_stops_none(run):
    def breaks(run, seconds, found):
        raise RuntimeError("no such device")

    def fails(run, seconds, found):
        found["commands"].append(run.python("fails", ["-c", "print('oh no'); raise SystemExit(3)"], seconds))

    def works(run, seconds, found):
        found["figures"] = {"speed": {"images_per_s": 1234.5678}}

    gpu_check.take(run, [stage("one", breaks), stage("two", fails), stage("three", works)], lambda text: None)
    assert [found["outcome"] for found in run.record["stages"].values()] == ["failed", "failed", "passed"]
    page = (run.out / "page.md").read_text()
    assert "RuntimeError: no such device" in page and "oh no" in page and "images_per_s 1235" in page
    assert "oh no" in (run.out / "log.txt").read_text()
    assert {path.name for path in run.out.iterdir()} == {"page.md", "page.json", "log.txt", "details.tar.gz"}


def test_a_hanging_stage_is_stopped_with_its_children_and_the_others_keep_their_time(run, tmp_path):
    note, limits = tmp_path / "pid", []
    program = "import subprocess, sys, time; note = open(sys.argv[1], 'w')\n"
    program += "note.write(str(subprocess.Popen(['sleep', '600']).pid)); note.close(); time.sleep(600)"

    def hangs(run, seconds, found):
        found["commands"].append(run.python("hangs", ["-c", program, note], seconds))

    began = time.monotonic()
    later = stage("next", lambda run, seconds, found: limits.append(seconds), 3)
    gpu_check.take(run, [stage("hangs", hangs), later], lambda text: None)
    assert run.record["stages"]["hangs"]["outcome"] == "out of time"
    assert time.monotonic() - began < 60 * run.minutes and limits[0] > 0
    if note.exists():  # it came so far in its three seconds
        state = Path(f"/proc/{note.read_text()}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_time_that_is_left_over_goes_to_later_stages(run):
    limits = []
    stages = [stage(name, lambda run, seconds, found: limits.append(seconds)) for name in "abc"]
    gpu_check.take(run, stages, lambda text: None)
    assert limits[0] == pytest.approx(4, abs=0.5) and limits[2] == pytest.approx(12, abs=1)


def test_killed_and_late_commands_are_distinguished(run):
    taken = run.python("killed", ["-c", "import time; time.sleep(600)"], 60, kill=lambda: True)
    assert taken["killed"] and not taken["timed_out"]


def test_wheels_are_unpacked_and_found(tmp_path):
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "absent_thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("absent_thing.py", "value = 7\n")
    assert gpu_check.unpack(wheels, site) == ["absent_thing-1.0-py3-none-any.whl"]
    program = [sys.executable, "-c", "import absent_thing; print(absent_thing.value)"]
    assert gpu_check.output(program, {"PYTHONPATH": str(site)}) == "7"


def test_the_package_is_linked_as_it_would_be_installed(tmp_path):
    gpu_check.link_tree(tmp_path / "tree")
    program = "import fastdhm.kernels, fastdhm.benchmarks, fastdhm; print(fastdhm.__file__)"
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "tree", capture_output=True, text=True)
    assert found.stdout.startswith(str(tmp_path)), found.stderr
    assert not list((tmp_path / "tree" / "fastdhm").glob("*.so")) and (tmp_path / "tree" / "tests" / "tools").is_dir()


def test_marks_say_what_holds_what_failed_and_what_was_not_run():
    def measured(name, value, where):
        return {"name": name, "where": where, "value": {"median": value}}

    given = [
        measured("fused over copy", 1.3, "3x32768x1000 bfloat16"),
        measured("fused over copy", 1.39, "3x32768x1000 bfloat16 captured"),
        measured("fused over copy", 1.3, "3x8192x4096 bfloat16 captured"),
    ]
    record = {"stages": {"loss": {"results": {"loss-bfloat16": {"marks": given}}}}}
    told = [(value, how) for _, value, how in gpu_page.marks(record)]
    assert told[:3] == [(1.39, "holds"), (1.3, "MISSED"), (None, "not run")]
    assert set(told[3:]) == {(None, "not run")}


def test_tests_are_counted_as_far_as_they_came():
    log = (
        "tests/a/test_a.py::test_one[1-2] PASSED [ 20%]\n[gw0] [ 40%] FAILED tests/a/test_a.py::test_two[x]\n"
        "tests/a/test_a.py::test_three SKIPPED (no)\n=== short test summary info ===\n"
        "FAILED tests/a/test_a.py::test_two[x]\n"
    )
    assert gpu_stages.count_tests(log) == (
        {"passed": 1, "failed": 1, "skipped": 1}, ["tests/a/test_a.py::test_two[x]"]
    )  # fmt: skip


def test_every_file_with_a_gpu_test_is_found_the_most_valuable_first():
    files = gpu_stages.gpu_tests()
    assert files[: len(gpu_stages.TESTS_FIRST)] == list(gpu_stages.TESTS_FIRST)
    assert "tests/kernels/test_mimic_loss.py" in files and len(files) == len(set(files))


def test_counters_are_read_below_their_units():
    log = '==PROF== connected\n"ID","Kernel Name","gpu__time_duration.sum","other"\n'
    log += '"","","ns","%"\n"0","mimic","1,024","3"\n'
    assert gpu_stages.read_counters(log) == [{"kernel": "mimic", "gpu__time_duration.sum [ns]": "1,024"}]
    assert gpu_stages.read_counters("ncu: no permission") == []


def test_without_a_gpu_it_says_that_it_was_not_run(tmp_path):
    command = [ROOT / "tools" / "gpu_check.sh", "--out", tmp_path / "out"]
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and "sees no CUDA device here: NOT RUN" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--stages build,dance", "--stages has dance"),
        ("--minutes 0", "--minutes must be above 0"),
        ("--wheels nowhere", "nowhere does not exist"),
    ],
)
def test_a_mistake_is_told(flags, message, capsys):
    with pytest.raises(SystemExit):
        gpu_check.arguments(flags.split())
    assert message in capsys.readouterr().err
