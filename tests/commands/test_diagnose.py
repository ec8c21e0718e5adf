"""`fastdhm diagnose`: its files, and what it refuses."""

import csv

import pytest
from safetensors.torch import load_file

from fastdhm.cli import main
from fastdhm.engine.saved.record import read_log

FLAGS = "--dataset synthetic:64 --batch-size 16 --epochs 1 --loader torch --workers 0 --device cpu --compile off"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By name: a run of each method, one of another network, and one that measured nothing."""
    folder = tmp_path_factory.mktemp("runs")
    flags = {
        "dsl": ["--method", "dsl", "--grad-cosine", "2"], "dhm": ["--method", "dhm", "--grad-cosine", "1"],
        "baseline": ["--method", "baseline"], "other": ["--arch", "resnet14", "--max-steps", "1"],
    }  # fmt: skip
    for name, own in flags.items():
        base = ["train", "--arch", "resnet8", *FLAGS.split(), "--precision", "float32", "--log-every", "2"]
        where = ["--run-dir", str(folder / name), "--data-dir", str(folder / "data")]
        assert main([*base, *where, *own]) == 0
    return folder


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_it_writes_pictures_and_their_numbers(runs, tmp_path, capsys):
    assert main(["diagnose", str(runs / "dsl"), str(runs / "dhm"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "B0-B2@layer1" in said and "layer3.0.conv2" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"kernels.png", "kernels.csv", "kernels.safetensors", "gradients.png", "gradients.csv"}
    for name in ("kernels.png", "gradients.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    layers = read_csv(tmp_path / "out" / "kernels.csv")
    assert [(row["run"], row["layer"]) for row in layers] == [
        (run, f"layer{stage}.0.conv{c}") for run in ("dsl", "dhm") for stage in (2, 3) for c in (1, 2)
    ]
    matrices = load_file(tmp_path / "out" / "kernels.safetensors")
    for row in layers:
        matrix_FF = matrices[f"{row['run']}/{row['layer']}"]
        assert matrix_FF.shape == (int(row["filters"]),) * 2
        assert float(matrix_FF.abs().mean()) == pytest.approx(float(row["mean_abs"]), rel=1e-4)


def test_the_cosines_are_those_of_the_logs(runs, tmp_path):
    out = tmp_path / "out"
    assert main(["diagnose", str(runs / "dsl"), str(runs / "dhm"), "--what", "gradients", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"gradients.png", "gradients.csv"}
    rows = [row for row in read_csv(out / "gradients.csv") if (row["run"], row["name"]) == ("dhm", "B0-B1@layer2")]
    logged = [row for row in read_log(runs / "dhm") if row["kind"] == "step"]
    assert [int(row["step"]) for row in rows] == [2, 4]
    assert [float(row["cosine"]) for row in rows] == [row["grad_cosine/B0-B1@layer2"] for row in logged]


def test_a_checkpoint_and_a_run_of_one_method_are_told_apart(runs, tmp_path):
    paths = [str(runs / "dhm"), str(runs / "dhm" / "last.pt")]
    assert main(["diagnose", *paths, "--what", "kernels", "--out", str(tmp_path)]) == 0
    rows = read_csv(tmp_path / "kernels.csv")
    assert len({row["run"] for row in rows}) == 2
    assert rows[0]["mean_abs"] == rows[len(rows) // 2]["mean_abs"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["baseline"], "so it has no side branch B2 to compare with B0"),
        (["dhm", "--branch", "B1"], "no 3x3 convolution of B1 has the same shape as one of B0"),
        (["dhm", "--branch", "B7"], "so it has no side branch B7"),
        (["dhm", "other"], "other is a resnet14, but"),
        (["other"], "has no cosines of gradients in its log.jsonl: train it with --grad-cosine"),
        (["nowhere"], "is not there"),
        (["."], "is not a run of fastdhm"),
        (["dhm", "--what", "kernel"], "did you mean 'kernels'"),
        (["dhm/network.safetensors"], "holds a stripped network, so it has no side branch B2"),
        ([], "give RUN"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(runs, tmp_path, capsys, given, message):
    split = next((i for i, word in enumerate(given) if word.startswith("--")), len(given))
    paths = [str(runs / name) for name in given[:split]]
    assert main(["diagnose", *paths, *given[split:], "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
