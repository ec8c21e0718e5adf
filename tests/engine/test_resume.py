"""Going on with a run: what was edited, moved or lost in the meantime."""

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from fastdhm.cli import main
from fastdhm.engine.saved.checkpoint import learnt_from, load_checkpoint, read_config
from runs import rows_without_times

FLAGS = "--arch resnet8 --method baseline --epochs 2 --batch-size 8 --loader torch --workers 0 --device cpu "
FLAGS += "--precision float32"


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run on a folder of 16 images, cut in the middle of its second epoch."""
    root = tmp_path_factory.mktemp("cut")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / "A" / split / name).mkdir(parents=True)
            for i in range(8):
                picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                picture.save(root / "A" / split / name / f"{i}.png")
    folders = ["--dataset", f"folder:{root}/A", "--run-dir", str(root / "run"), "--data-dir", str(root / "data")]
    assert main(["train", *folders, *FLAGS.split(), "--max-steps", "3"]) == 0
    return root


@pytest.fixture
def run(cut, tmp_path):
    return shutil.copytree(cut / "run", tmp_path / "run")


def epochs(folder):
    return [row for row in rows_without_times(folder) if row["kind"] == "epoch"]


def resume(folder, *flags):
    return main(["train", "--resume", str(folder), *flags])


@pytest.mark.parametrize("lost", ["nothing", "the last row", "all rows"])
def test_resumed_at_the_same_cut_a_run_keeps_its_last_validation(run, lost):
    before, log = epochs(run), run / "log.jsonl"
    assert before[-1]["epoch"] == 1.5
    if lost != "nothing":
        kept = [line for line in log.read_text().splitlines(True) if '"epoch": 1.5' not in line]
        log.write_text("".join(kept) if lost == "the last row" else "")
    assert resume(run, "--max-steps", "3") == 0
    assert epochs(run)[-1] == before[-1]
    assert load_checkpoint(run / "last.pt")["position"]["best_epoch"] == 0, "a cut epoch is no best one"


def test_a_whole_run_whose_last_row_was_lost_validates_again(run):
    assert resume(run) == 0
    last, log = epochs(run)[-1], run / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"epoch": 2.0' not in line))
    assert resume(run) == 0
    again = epochs(run)[-1]
    assert again == {name: value for name, value in last.items() if name in again} and "val_error/B0" in again


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("batch_size: 64", "batch_size: 8 -> 64"), ("ema: 0.9", "ema: 0.0 -> 0.9"), ("seed: 1", "seed: 0 -> 1"),
        ("arch: resnet14", "arch: resnet8 -> resnet14"), ("lr: 1e-3", "lr: 0.05 -> 0.001"), ("flip: no", "flip: True"),
    ],
)  # fmt: skip
def test_a_config_that_was_edited_is_refused_by_name(run, capsys, line, named):
    config = run / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values.pop(line.partition(":")[0])
    config.write_text(yaml.safe_dump(values) + line + "\n")
    assert resume(run) == 2
    assert f"is not what last.pt was trained with ({named}" in capsys.readouterr().err
    assert main(["eval", str(run)]) == 2
    assert named in capsys.readouterr().err


def test_what_may_be_set_anew_may_be_edited(run):
    text = (run / "config.yaml").read_text()
    assert "save_minutes: 5.0" in text and "compile: 'off'" in text
    (run / "config.yaml").write_text(text.replace("save_minutes: 5.0", "save_minutes: 1e1").replace("'off'", "off"))
    assert resume(run, "--log-every", "7", "--max-steps", "3") == 0
    config = read_config(run)
    assert (config.save_minutes, config.compile, config.log_every) == (10.0, "off", 7)
    assert load_checkpoint(run / "last.pt")["config"]["save_minutes"] == 10.0


def test_a_config_of_before_a_field_goes_on(run):
    values = yaml.safe_load((run / "config.yaml").read_text())
    del values["grad_cosine"], values["skip_bad"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert resume(run, "--max-steps", "3") == 0


def test_images_that_were_moved_are_found_where_they_lie_now(cut, run, tmp_path, capsys):
    moved = shutil.copytree(cut / "A", tmp_path / "B", copy_function=shutil.copy)
    assert resume(run, "--dataset", f"folder:{moved}", "--max-steps", "3") == 0
    assert read_config(run).dataset == f"folder:{moved}"
    assert main(["eval", str(run), "--dataset", f"folder:{cut}/A", "--json"]) == 0
    assert "is not what" not in capsys.readouterr().err
    (moved / "val" / "cat" / "0.png").unlink()
    assert main(["eval", str(run), "--json"]) == 0
    assert "val: 16 images, now 15" in capsys.readouterr().err, "other images are judged, and named"
    assert resume(run) == 2
    assert "val: 16 images, now 15" in capsys.readouterr().err


def test_a_run_says_what_it_learnt_from(run):
    data = load_checkpoint(run / "last.pt")["data"]
    assert {split: part["count"] for split, part in data.items()} == {"train": 16, "val": 16}
    assert learnt_from(run / "network.safetensors") == data


def test_a_run_of_before_that_was_kept_goes_on(run):
    import torch

    saved = load_checkpoint(run / "last.pt")
    del saved["data"]
    torch.save(saved, run / "last.pt")
    assert resume(run, "--max-steps", "3") == 0
    assert load_checkpoint(run / "last.pt")["data"]["train"]["count"] == 16


def test_equal_runs_leave_equal_networks(cut, run, tmp_path):
    folders = ["--dataset", f"folder:{cut}/A", "--run-dir", str(tmp_path / "other"), "--data-dir", f"{cut}/data"]
    assert main(["train", *folders, *FLAGS.split(), "--max-steps", "3"]) == 0
    name = "network.safetensors"
    assert (tmp_path / "other" / name).read_bytes() == (run / name).read_bytes()
