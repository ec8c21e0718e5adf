"""Tables, records and curves of runs that are made up, so that every number is known."""

import csv
import dataclasses
import json
import math
import re

import pytest

from fastdhm.compare.arms import Variant
from fastdhm.compare.plan import compare_methods, reproduce_table
from fastdhm.compare.plots import curve
from fastdhm.compare.record import csv_rows, record
from fastdhm.compare.report import (
    difference_table,
    escaped,
    main_table,
    markdown,
    paper_table,
    published,
    spread,
    tables_markdown,
    time_table,
    write_results,
)  # fmt: skip
from fastdhm.compare.results import Results
from fastdhm.compare.runs import RunState
from fastdhm.compare.statistics import Summary
from fastdhm.compare.words import remarks, what_is_counted


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
    assert "Not complete: 1 of 6 runs is not finished." in text
    assert "Failed, so not in any mean or pair: dhm, seed 2: the loss is not finite since step 12." in text
    assert "last epoch" in text and "flatters the result" not in text
    assert "flatters the result" in tables_markdown(results("best"))


def test_dhm_is_compared_with_dsl_too_in_every_branch_that_they_have():
    variants = [Variant(name, name, {}) for name in ("baseline", "dsl", "dhm")]
    made = compare_methods(variants, (0,), {"dataset": "cifar100", "arch": "resnet32"})
    runs = (run("baseline", 0, [40], branches=("B0",)), run("dsl", 0, [39]), run("dhm", 0, [37]))
    rows = [row[:3] + row[4:5] for row in difference_table(Results(made, runs, "last", 0.95))[1:]]
    assert rows == [
        ["dsl", "baseline", "B0", "-1.00"],
        ["dhm", "baseline", "B0", "-3.00"],
        ["dhm", "dsl", "B0", "-2.00"],
        ["dhm", "dsl", "B1", "-2.00"],
    ]
    assert "no difference from" not in tables_markdown(Results(made, runs, "last", 0.95))


def test_side_branches_that_nothing_is_compared_in_are_named_with_what_shows_them():
    variants = [Variant("baseline", "baseline", {}), *(Variant(name, "dhm", {}) for name in ("dhm", "other"))]
    made = compare_methods(variants, (0,), {"dataset": "cifar100", "arch": "resnet32"})
    runs = (run("baseline", 0, [40], branches=("B0",)), run("dhm", 0, [39]), run("other", 0, [37]))
    said = " ".join(remarks(Results(made, runs, "last", 0.95)))
    assert (
        "B1: no difference from baseline, which has no such branch. `fastdhm compare --resume FOLDER --report-only "
        "--reference dhm` shows theirs from dhm." in said
    )
    from_dhm = Results(dataclasses.replace(made, reference="dhm"), runs, "last", 0.95)
    assert "no difference from" not in " ".join(remarks(from_dhm))
    assert ["other", "dhm", "B1", "1", "-2.00"] in [row[:5] for row in difference_table(from_dhm)]


def test_the_best_epoch_of_a_branch_alone_is_said_to_be_its_own():
    alone = compare_methods([Variant("baseline", "baseline", {})], (0,), {"dataset": "cifar100", "only_branch": "B1"})
    assert "error of B1 (this flatters the result" in what_is_counted(Results(alone, (), "best", 0.95))
    both = reproduce_table("5", {})
    said = what_is_counted(Results(both, (), "best", 0.95))
    assert "error of B0, or of the branch that is trained alone (B1, B2) (this flatters the result" in said


def test_the_record_pairs_by_seed_and_keeps_each_run():
    kept = record(results())
    dhm = next(row for row in kept["summary"] if (row["arm"], row["branch"]) == ("dhm", "B0"))
    low, high, p_value = (pytest.approx(value, abs=1e-3) for value in (-9.853, 2.853, 0.0903))
    assert dhm["difference"] == {"n": 2, "mean": -3.5, "low": low, "high": high, "p_value": p_value, "n_needed": 3}
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
    assert names == {
        "results.json",
        "table.md",
        "table.csv",
        "README.md",
        "curves.png",
        "wallclock.png",
        "frontier.png",
    }
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == [0, 1, 2]
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["branch"], row["n"]) for row in rows] == [
        ("baseline", "B0", "2"), ("dhm", "B0", "2"), ("dhm", "B1", "2"),
    ]  # fmt: skip
    assert (rows[1]["difference"], rows[1]["paper_mean"], rows[0]["difference"]) == ("-3.5", "27.404", "")
    for name in ("curves.png", "wallclock.png", "frontier.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    readme = (tmp_path / "README.md").read_text()
    assert "curves.png" in readme and "epochs: 164" in readme and "Student's t" in readme


def test_nothing_finished_is_no_picture_and_no_error(tmp_path):
    states = tuple(run(arm, 0, [], "missing") for arm in ("baseline", "dhm"))
    write_results(tmp_path, Results(comparison(), states, "last", 0.95))
    assert not (tmp_path / "curves.png").exists() and "png" not in (tmp_path / "README.md").read_text()


def test_times_are_of_the_runs_that_had_their_machine_to_themselves():
    slowed = run("dhm", 1, [49, 31, 38, 37, 36, 35], company="up to 2 at once")
    mixed = Results(comparison(), (*RUNS[:3], slowed), "last", 0.95)
    rows = {row[0]: row[1:4] for row in time_table(mixed)[1:]}
    assert rows == {"baseline": ["2", "2.00 ± 0.00", "1.00"], "dhm": ["1", "3.00", "1.50"]}
    none_alone = Results(comparison(), (*RUNS[:1], RUNS[2], slowed), "last", 0.95)
    assert time_table(none_alone)[2][1:4] == ["1", "6.00", "-"]


def test_numbers_as_text():
    assert spread(Summary(5, 27.404, 0.255)) == "27.40 ± 0.26"  # 0.255 lies a little above in binary
    assert (spread(Summary(1, 3.0, None)), spread(None), published(None, "top1_error")) == ("3.00", "-", "-")
    assert published((17.2, 0.224), "top1_error") == "17.200 ± 0.224"
    assert published((72.0, None), "map_percent") == "72.0"


def pair(ours, theirs, score="last", **given):
    """Two arms with these last errors by seed."""
    runs = [run("baseline", seed, [value], branches=("B0",)) for seed, value in enumerate(theirs)]
    runs += [run("dhm", seed, [value], branches=("B0",)) for seed, value in enumerate(ours)]
    return Results(comparison(**given), tuple(runs), score, 0.95)


def test_where_the_interval_holds_0_the_pairs_that_are_needed_are_told():
    unsettled = pair([39.0, 41.0, 40.0], [40.1, 41.2, 40.0])
    assert difference_table(unsettled)[1][7] == "17" and "Needed: " in what_is_counted(unsettled)
    nothing = pair([39.0, 41.0], [41.0, 39.0])
    assert difference_table(nothing)[1][7] == "> a million"
    settled = pair([30.0, 30.1, 30.2], [40.1, 40.2, 40.4])
    assert difference_table(settled)[1][7] == "-" and "Needed: " not in what_is_counted(settled)


def test_equal_differences_have_no_interval_and_narrow_ones_no_zero_width():
    assert difference_table(pair([37.1, 38.2, 35.7], [40.1, 41.2, 38.7]))[1][4:] == [
        "-3.00", "none, equal in all pairs", "-", "-",
    ]  # fmt: skip
    row = difference_table(pair([37.1, 38.2001], [40.1, 41.2]))[1]
    assert row[7] == "-"
    low, _, high = row[5].partition(" to ")
    assert float(low) < float(high)


def test_each_arm_counts_the_epoch_that_it_keeps():
    variants = [Variant("baseline", "baseline", {}), Variant("dhm", "dhm", {"keep": "best"})]
    made = compare_methods(variants, (0,), {"dataset": "cifar100", "arch": "resnet32"})
    both = Results(made, (run("baseline", 0, [30, 40]), run("dhm", 0, [30, 40])), "auto", 0.95)
    assert [row[2] for row in main_table(both)[1:]] == ["40.00", "30.00"]
    said = what_is_counted(both)
    assert "last epoch (baseline) or of each run's epoch with the lowest validation error of B0 (this flatters" in said


def test_intervals_are_said_to_be_about_the_seed_alone():
    said = what_is_counted(pair([1, 2], [2, 3], subset=1000, corrupt_labels=0.2))
    assert "only the luck of the training seed" in said and "on the test images of cifar100" in said
    assert "the same part of the training images, with the same random labels, and is judged on the same" in said


def test_one_seed_is_said_to_settle_nothing():
    made = compare_methods([Variant(m, m, {}) for m in ("baseline", "dhm")], (3,), {"dataset": "cifar100"})
    runs = (run("baseline", 3, [40], branches=("B0",)), run("dhm", 3, [39], branches=("B0",)))
    assert "may be only the luck of the seed" in " ".join(remarks(Results(made, runs, "last", 0.95)))
    assert "luck of the seed" not in " ".join(remarks(results()))


def test_runs_of_other_images_are_named():
    state = pair([37, 38], [40, 41])
    before, now = ({"train": {"count": count, "digest": "x"}} for count in (80, 81))
    old = [dataclasses.replace(one, data=before if one.seed == 0 else now) for one in state.states]
    said = " ".join(remarks(dataclasses.replace(state, states=tuple(old))))
    assert "Not the same images: baseline-seed1, dhm-seed1 and baseline-seed0 were trained or evaluated on" in said
    assert "train: 80 images, now 81" in said
    same = tuple(dataclasses.replace(one, data=before) for one in state.states)
    assert "Not the same images" not in " ".join(remarks(dataclasses.replace(state, states=same)))


def people(arm, seed, branches, percent):
    row = {"kind": "reid", "step": 10, "epoch": 1.0, "map_percent": percent, "rank1_percent": 90, "rank5_percent": 95}
    state = run(arm, seed, [20], branches=branches)
    return dataclasses.replace(state, rows=(*state.rows, row))


def test_people_have_columns_of_what_is_ranked_and_a_branch_alone_is_its_own(tmp_path):
    alone = Variant("alone", "baseline", {"only_branch": "B1", "weights": None, "freeze_epochs": 0})
    variants = [alone, Variant("dhm", "dhm", {})]
    made = compare_methods(variants, (0, 1), {"dataset": "reid-synthetic"})
    states = [people("alone", s, ("B1",), 50 + s) for s in (0, 1)] + [
        people("dhm", s, ("B0", "B1"), 60) for s in (0, 1)
    ]
    found = Results(made, tuple(states), "auto", 0.95)
    assert main_table(found) == [
        ["method", "n", "B0 mAP", "B0 rank-1", "B1 mAP", "B1 rank-1"],
        ["alone", "2", "-", "-", "50.50 ± 0.71", "90.00 ± 0.00"],
        ["dhm", "2", "60.00 ± 0.00", "90.00 ± 0.00", "-", "-"],
    ]
    usual = Results(
        compare_methods(variants[1:], (0, 1), {"dataset": "reid-synthetic"}), tuple(states[2:]), "auto", 0.95
    )
    assert main_table(usual)[0] == ["method", "n", "B0 mAP", "B0 rank-1"], "no empty column of B1"
    write_results(tmp_path, found)
    readme = (tmp_path / "README.md").read_text("utf-8")
    assert "Training and seen-image error" in readme and "how well they are learnt" in readme
    assert "validation error" not in readme


def test_names_of_any_kind_are_shown_as_they_are(tmp_path):
    wild = ["=2+3", "a|b_c_ `x` $\\frac$ *y* <b>", '_hidden, "café"']
    variants = [Variant(name, "dhm", {"lr": 0.1 + n}) for n, name in enumerate(wild)]
    made = compare_methods(variants, (0,), {"dataset": "folder:/data/$a$ _b_|c", "arch": "resnet8"})
    found = Results(made, tuple(run(arm.name, 0, [40.0 + n]) for n, arm in enumerate(made.arms)), "last", 0.95)
    write_results(tmp_path, found)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert labels == [f"'{wild[0]}"] * 2 + [wild[1]] * 2 + [wild[2]] * 2
    header, _, *lines = markdown(main_table(found)).splitlines()
    cells = [re.sub(r"\\(.)", lambda m: {"|": "\0"}.get(m[1], m[1]), line).split("|") for line in lines]
    assert {len(row) for row in cells} == {len(header.split("|"))}
    assert [row[1].strip().replace("\0", "|") for row in cells] == wild


def test_markdown_shows_what_it_would_take_for_its_own():
    assert escaped("val_error of a_b_ *x* |") == r"val_error of a_b\_ \*x\* \|"
    assert escaped("two\nlines") == "two lines"


def test_numbers_that_json_lacks_are_null(tmp_path):
    state = run("dhm", 0, [40.0])
    state.rows[0]["val_ce/B0"] = math.nan
    found = Results(comparison(), (state,), "last", 0.95)
    write_results(tmp_path, found)

    def refuse(token):
        raise AssertionError(token)

    kept = json.loads((tmp_path / "results.json").read_text("utf-8"), parse_constant=refuse)
    assert kept["runs"][0]["last"]["B0"]["cross_entropy"] is None
    assert all(row["arm"] == "dhm" for row in csv_rows(found))


def test_an_epoch_that_max_steps_cut_is_the_best_only_where_there_is_no_other():
    state = run("dhm", 0, [50, 40, 30])
    state.rows[2]["epoch"] = 2.4
    assert (state.best_epoch(), state.scores("last")["B0"]["top1_error"]) == (2.0, 30)
    only = dataclasses.replace(state, rows=state.rows[2:])
    assert only.best_epoch() == 2.4


def test_runs_of_two_versions_are_told():
    both = dataclasses.replace(comparison(), made_by=("fastdhm 1 with torch 2", "fastdhm 2 with torch 2"))
    said = " ".join(remarks(Results(both, RUNS, "last", 0.95)))
    assert "Made by fastdhm 1 with torch 2 and by fastdhm 2 with torch 2" in said
    assert "Made by" not in " ".join(remarks(results()))
