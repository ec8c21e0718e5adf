"""fastdhm predict: what is written for a folder of images, and that it agrees with fastdhm eval."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fastdhm.cli import main
from fastdhm.engine.predictor import load

CLASSES = ('a, "one"', "a\rb", "two\nlines")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps on noise; its validation images have several sizes."""
    root, random = tmp_path_factory.mktemp("predict"), np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(CLASSES):
            (root / "photos" / split / name).mkdir(parents=True)
            for i in range(8):
                noise = random.integers(0, 120 + 60 * number, (40 + i, 36 + 2 * i, 3), np.uint8)
                Image.fromarray(noise).save(root / "photos" / split / name / f"{i}.png")
    flags = "--arch resnet8 --branches B1,B2 --image-size 32 --batch-size 8 --max-steps 2 --loader torch --workers 0"
    argv = ["train", "--dataset", f"folder:{root / 'photos'}", "--run-dir", str(root / "run"), *flags.split()]
    assert main([*argv, "--precision", "float32", "--device", "cpu"]) == 0
    return root / "run", root / "photos" / "val"


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("branch", ["B0", "B1", "B2", "ensemble"])
def test_the_error_is_that_of_eval(run, tmp_path, capsys, branch):
    run_dir, val = run
    assert main(["eval", str(run_dir), "--json", "--branch", branch]) == 0
    told = json.loads(capsys.readouterr().out)[branch]["top1_error"]
    out = tmp_path / "p.csv"
    argv = ["predict", str(run_dir), str(val), "--out", str(out), "--workers", "0", "--branch", branch]
    assert main(argv) == 0
    rows = rows_of(out)
    assert len(rows) == 24 and {row["class_1"] for row in rows} <= set(CLASSES)
    wrong = [row["class_1"] != os.path.basename(os.path.dirname(row["image"])) for row in rows]
    assert 100 * np.mean(wrong) == pytest.approx(told, abs=1e-9)


def test_an_ensemble_is_the_mean_of_all_probabilities(run):
    run_dir, val = run
    image = next(val.rglob("*.png"))
    found = {}
    for branch in ("B0", "B1", "B2", "ensemble"):
        (one,) = load(run_dir, branch=branch, device="cpu").predict(image)
        found[branch] = [dict(zip(one.classes, one.probabilities, strict=True))[name] for name in CLASSES]
    mean = np.mean([found[name] for name in ("B0", "B1", "B2")], axis=0)
    np.testing.assert_allclose(found["ensemble"], mean, atol=1e-6)


def test_bad_files_are_listed_and_the_rest_is_done(run, tmp_path, capsys):
    run_dir, val = run
    folder, out = tmp_path / "new", tmp_path / "p.json"
    folder.mkdir()
    good = os.fsdecode(b'odd, "\xe9\n.png')
    (folder / good).write_bytes(next(val.rglob("*.png")).read_bytes())
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    assert main(["predict", str(run_dir), str(folder), "--out", str(out), "--workers", "1"]) == 1
    assert "broken.png" in capsys.readouterr().err
    (row,) = json.loads(out.read_text("utf-8"))
    assert row["image"].endswith('odd, "\\xe9\n.png')
    assert main(["predict", str(run_dir), str(folder / "broken.png"), "--out", str(tmp_path / "q.csv")]) == 2
    assert not (tmp_path / "q.csv").exists()


def test_what_is_not_there_or_is_no_image_is_said_once(run, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    for given, said in (("nowhere", "nothing lies at"), ("bad.png", "not an image")):
        argv = ["predict", str(run[0]), str(tmp_path / given), "--out", str(tmp_path / "p.csv"), "--workers", "0"]
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error and given in error, error
    assert not (tmp_path / "p.csv").exists()


def test_csv_and_parquet_hold_the_same(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("p.csv", "p.parquet"):
        argv = ["predict", str(run[0]), str(run[1]), "--out", str(tmp_path / name), "--workers", "0"]
        assert main([*argv, "--batch-size", "5", "--top", "2"]) == 0
    rows, table = rows_of(tmp_path / "p.csv"), parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert list(table[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert [{name: str(value) for name, value in row.items()} for row in table] == rows
    assert {row["class_2"] for row in rows} <= set(CLASSES)


def test_without_pyarrow_the_message_says_what_to_install(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["predict", str(run[0]), str(run[1]), "--out", str(tmp_path / "p.parquet")]) == 2
    assert "pip install 'fastdhm[parquet]'" in capsys.readouterr().err


def test_a_plain_network_has_no_branches(run, tmp_path, capsys):
    argv = ["predict", str(run[0] / "network.safetensors"), str(run[1]), "--out", "-", "--branch"]
    assert main([*argv, "B1"]) == 2
    assert "best.pt or last.pt" in capsys.readouterr().err
    assert main([*argv, "B0", "--workers", "0"]) == 0
    assert capsys.readouterr().out.startswith("image,class_1,probability_1")


def test_parquet_without_its_library(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["predict", *map(str, run), "--out", str(tmp_path / "p.parquet")]) == 2
    assert "pip install 'fastdhm[parquet]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it(run):
    argv = [sys.executable, "-m", "fastdhm", "predict", str(run[0]), *[str(run[1])] * 400, "--out", "-"]
    with subprocess.Popen([*argv, "--workers", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as told:
        assert told.stdout.readline().startswith("image,class_1")
        told.stdout.close()
        errors = told.stderr.read()
    assert told.returncode == 0 and "Broken" not in errors
