"""Tables, records and curves of runs that are made up, so that every number is known."""

import csv
import dataclasses
import json

import pytest

from fastdhm.compare.arms import Variant
from fastdhm.compare.plan import compare_methods, reproduce_table
from fastdhm.compare.plots import curve
from fastdhm.compare.report import (
    main_table,
    paper_table,
    published,
    record,
    spread,
    tables_markdown,
    what_is_counted,
    write_results,
)  # fmt: skip
from fastdhm.compare.results import Results
from fastdhm.compare.runs import RunState
from fastdhm.compare.statistics import Summary


def run(arm, seed, errors, status="finished", branches=("B0", "B1"), **more):
    """A run with B0's ``errors`` epoch by epoch; B1 is one better, training two better; 60 s an epoch, 6 validating."""
    rows = []
    for n, error in enumerate(errors, 1):
        values = {f"val_error/{name}": error - m for m, name in enumerate(branches)}
        values |= {f"train_error/{name}": error - 2 - m for m, name in enumerate(branches)}
        values |= {f"val_top5_error/{name}": error / 2 for name in branches}
        times = {"train_seconds": 60.0 * n, "val_seconds": 6.0, "val_side": 32}
        rows.append({"kind": "epoch", "epoch": float(n), "step": 10 * n, **values, **times})
    return RunState(arm, seed, status, tuple(rows), float(len(errors)), machine="cpu, float32", **more)


def comparison(**given):
    variants = [Variant("baseline", "baseline", {}), Variant("dhm", "dhm", {})]
    return compare_methods(variants, (0, 1, 2), {"dataset": "cifar100", "arch": "resnet32", **given})


RUNS = (
    run("baseline", 0, [50, 40], branches=("B0",)),
    run("dhm", 0, [48, 30, 37]),
    run("baseline", 1, [52, 42], branches=("B0",)),
    run("dhm", 1, [49, 31, 38]),
    run("baseline", 2, [], "missing"),
    run("dhm", 2, [48], "failed", failure="the loss is not finite since step 12"),
)


def results(score="last"):
    return Results(comparison(), RUNS, score, 0.95)


def test_the_table_has_mean_spread_number_of_runs_and_the_papers_row():
    header, baseline, dhm = main_table(results())
    assert header == ["method", "n", "B0 top-1 error", "paper B0 top-1 error", "B1 top-1 error"]
    assert baseline == ["baseline", "2 of 3", "41.00 ± 1.41", "30.306 ± 0.207", "-"]
    assert dhm == ["dhm", "2 of 3, 1 failed", "37.50 ± 0.71", "27.404 ± 0.255", "36.50 ± 0.71"]


def test_the_best_epoch_is_b0s_for_every_branch():
    assert main_table(results("best"))[2][2:] == ["30.50 ± 0.71", "27.404 ± 0.255", "29.50 ± 0.71"]


def test_the_words_name_what_is_missing_and_what_failed():
    text = tables_markdown(results())
    assert "Not complete: 1 of 6 runs are not finished." in text
    assert "Failed: dhm, seed 2: the loss is not finite since step 12." in text
    assert "last epoch" in text and "which flatters it" not in text
    assert "which flatters it" in tables_markdown(results("best"))


def test_side_branches_that_the_reference_lacks_are_named_with_what_shows_them():
    variants = [Variant(name, name, {}) for name in ("baseline", "dsl", "dhm")]
    made = compare_methods(variants, (0,), {"dataset": "cifar100", "arch": "resnet32"})
    runs = (run("baseline", 0, [40], branches=("B0",)), run("dsl", 0, [39]), run("dhm", 0, [37]))
    text = tables_markdown(Results(made, runs, "last", 0.95))
    assert (
        "B1: no difference from baseline, which has no such branch. `fastdhm compare --resume FOLDER --report-only "
        "--reference dsl` shows theirs from dsl." in text
    )
    from_dsl = tables_markdown(Results(dataclasses.replace(made, reference="dsl"), runs, "last", 0.95))
    assert "no difference from" not in from_dsl and "| dhm | B1 | top-1 error | 1 | -2.00 |" in from_dsl
    assert "no difference from" not in tables_markdown(results()), "one method alone has nothing to differ from"


def test_the_best_epoch_of_a_branch_alone_is_said_to_be_its_own():
    alone = compare_methods([Variant("baseline", "baseline", {})], (0,), {"dataset": "cifar100", "only_branch": "B1"})
    assert "error of B1, which flatters it" in what_is_counted(Results(alone, (), "best", 0.95))
    both = reproduce_table("5", {})
    said = what_is_counted(Results(both, (), "best", 0.95))
    assert "error of B0, or of the branch that is trained alone (B1, B2), which flatters it" in said


def test_the_record_pairs_by_seed_and_keeps_each_run():
    kept = record(results())
    dhm = next(row for row in kept["summary"] if (row["arm"], row["branch"]) == ("dhm", "B0"))
    low, high, p_value = (pytest.approx(value, abs=1e-3) for value in (-9.853, 2.853, 0.0903))
    assert dhm["difference"] == {"n": 2, "mean": -3.5, "low": low, "high": high, "p_value": p_value}
    assert [r["status"] for r in kept["runs"]].count("finished") == 4 and not kept["complete"]
    first = kept["runs"][1]
    assert (first["last"]["B0"]["top1_error"], first["best"]["B0"]["top1_error"], first["best_epoch"]) == (37, 30, 2)
    assert (first["train_seconds"], first["val_seconds"]) == (180, 18)


def test_a_run_on_small_images_counts_only_where_it_saw_whole_ones():
    state = run("dhm", 0, [20, 40, 38])
    state.rows[0]["val_side"] = 16
    assert (state.scores("best")["B0"]["top1_error"], state.best_epoch()) == (38, 3)


def test_a_branch_trained_alone_is_judged_by_itself():
    state = run("only-B1", 0, [30, 20, 25], branches=("B1",))
    assert (state.main_branch, state.best_epoch(), state.scores("best")["B1"]["top1_error"]) == ("B1", 2, 20)


def test_table_5_as_the_paper_lays_it_out():
    table = reproduce_table("5", {})
    states = (
        run("baseline", 0, [30.0], branches=("B0",)),
        run("only-B1", 0, [28.0], branches=("B1",)),
        run("only-B2", 0, [31.5], branches=("B2",)),
        run("dhm", 0, [29.0], branches=("B0", "B1", "B2")),
    )
    made = Results(table, states, "best", 0.95)
    assert paper_table(made)[0] == ["", "independent", "mimicking"]
    assert paper_table(made)[2] == [
        "B1", "28.00 / 14.00 (27.988 / 9.560)", "28.00 / 14.50 (27.626 / 9.176)",
    ]  # fmt: skip
    rows = {(row["arm"], row["branch"]): row for row in record(made)["summary"] if row["metric"] == "top1_error"}
    assert (rows["dhm", "B2"]["reference"], rows["dhm", "B2"]["difference"]["mean"]) == ("only-B2", -4.5)


def test_a_curve_has_mean_and_range_where_every_run_has_a_value():
    runs = [run("dhm", 0, [50, 40, 30]), run("dhm", 1, [54, 42])]
    points = curve(runs, lambda state: state.epoch_rows, "val_error/B0", lambda row: row["train_seconds"])
    assert points == [(60, 52, 50, 54), (120, 41, 40, 42)]


def test_everything_is_written_and_reads_back(tmp_path):
    write_results(tmp_path, results())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.json", "table.md", "table.csv", "README.md", "curves.png", "wallclock.png"}
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == [0, 1, 2]
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["branch"], row["n"]) for row in rows] == [
        ("baseline", "B0", "2"), ("dhm", "B0", "2"), ("dhm", "B1", "2"),
    ]  # fmt: skip
    assert (rows[1]["difference"], rows[1]["paper_mean"], rows[0]["difference"]) == ("-3.5", "27.404", "")
    for name in ("curves.png", "wallclock.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    readme = (tmp_path / "README.md").read_text()
    assert "curves.png" in readme and "epochs: 164" in readme and "Student's t" in readme


def test_nothing_finished_is_no_picture_and_no_error(tmp_path):
    states = tuple(run(arm, 0, [], "missing") for arm in ("baseline", "dhm"))
    write_results(tmp_path, Results(comparison(), states, "last", 0.95))
    assert not (tmp_path / "curves.png").exists() and "png" not in (tmp_path / "README.md").read_text()


def test_numbers_as_text():
    assert spread(Summary(5, 27.404, 0.255)) == "27.40 ± 0.26"  # 0.255 lies a little above in binary
    assert (spread(Summary(1, 3.0, None)), spread(None), published(None)) == ("3.00", "-", "-")
    assert (published((76.7, None)), published((30.046, None)), published((27.0, 0.3))) == (
        "76.7", "30.046", "27.0 ± 0.300",
    )  # fmt: skip
