"""``fastdhm data show``: what stands on the sheet is what a run trains on."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from fastdhm.cli import main
from fastdhm.cli.train import resolve_training
from fastdhm.commands import show
from fastdhm.engine.build import open_data
from fastdhm.engine.run import Run
from fastdhm.engine.saved.checkpoint import write_config
from fastdhm.engine.settle import settle
from fastdhm.system.console import Console

FLAGS = ["--dataset", "synthetic:80", "--image-size", "16", "--batch-size", "8"]
AUGMENTED = ["--augment", "trivial", "--random-erase", "0.5", "--color-jitter", "0.4,0.4,0.4,0.1"]


@pytest.fixture
def shown(monkeypatch):
    """What is drawn, beside the file."""
    seen, sheet = [], show.sheet
    monkeypatch.setattr(show, "sheet", lambda images: seen.extend(images) or sheet(images))
    return seen


def test_a_sheet_of_flags(tmp_path, capsys, shown):
    out = tmp_path / "sheet.png"
    flags = [*FLAGS, *AUGMENTED, "--data-dir", str(tmp_path), "--repeats", "2", "--epoch", "2"]
    assert main(["data", "show", *flags, "--images", "11", "--out", str(out)]) == 0
    assert "11 training images of synthetic:80, epoch 2" in capsys.readouterr().out
    assert len(shown) == 11 and any("erase" in each.done for each in shown)
    assert [each.label for each in shown[:4]] == [each.label for each in shown[4:8]], "two copies in a batch of 8"
    assert not np.array_equal(*(np.asarray(each.image) for each in (shown[0], shown[4])))
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 8 * 128


def test_a_sheet_of_mixed_images_has_several_batches(tmp_path, shown):
    flags = [*FLAGS, "--batch-size", "32", "--mixup", "1", "--data-dir", str(tmp_path), "--images", "16"]
    assert main(["data", "show", *flags, "--out", str(tmp_path / "sheet.png")]) == 0
    assert len(shown) == 16 and len({each.label.partition("%")[0] for each in shown}) == 2, "a row of each batch"
    assert main(["data", "show", *flags, "--images", "50", "--out", str(tmp_path / "sheet.png")]) == 0
    assert len(shown) == 16 + 50, "more than a row where there are few batches"


def test_labels_keep_their_accents():
    o, e = (bytes(show._font().getmask(letter)) for letter in "öé")
    assert o != e, "the font has neither, and draws a box"


def test_a_run_shows_what_it_learns_from(tmp_path, shown):
    flags = [
        *FLAGS,
        *AUGMENTED,
        "--arch",
        "resnet8",
        "--method",
        "baseline",
        "--corrupt-labels",
        "0.5",
        "--mixup",
        "1",
        "--cutmix",
        "1",
        "--loader",
    ]
    flags += [
        "torch",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--precision",
        "float32",
        "--data-dir",
        str(tmp_path),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    config = settle(resolve_training(flags)[0])
    (tmp_path / "run").mkdir()
    write_config(tmp_path / "run", config)
    data = open_data(config, Console(quiet=True))
    run = Run(config, tmp_path / "run", data.classes)
    run.learn_from(data)
    with data.train.epoch(0) as batches:
        learnt = []
        for run.at.batch, batch in enumerate(islice(batches, 2)):
            learnt.append(run.prepare(batch, 0, run.side))
    assert main(["data", "show", str(tmp_path / "run"), "--images", "16", "--out", str(tmp_path / "sheet.png")]) == 0
    image_BCHW = torch.cat([image_BCHW for image_BCHW, _ in learnt])
    expected = [
        f"{share:.0%} {data.classes[one]}, {1 - share:.0%} {data.classes[other]}"
        for _, labels in learnt
        for one, other, share in zip(*(column.tolist() for column in labels[:3]), strict=True)
    ]
    assert [each.label for each in shown] == expected
    for image_HWC, each in zip(show.pixels(image_BCHW, config), shown, strict=True):
        assert np.array_equal(image_HWC, np.asarray(each.image))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--augment", "trival"], "unknown augmentation policy 'trival'; did you mean 'trivial'?"),
        (["--augment", "rand-2-40"], "augment is rand-2-40: in rand-N-M"),
        (["--random-erase", "1.5"], "random_erase is 1.5: must be in [0, 1]"),
        (["--random-grey", "-1"], "random_grey is -1"),
        (["--color-jitter", "0.4,0.4"], "color_jitter is (0.4, 0.4): must be one number, or those"),
        (["--color-jitter", "0.4,0.4,0.4,0.9"], "hue at most 0.5"),
        (["--repeats", "9"], "repeats is 9: must be at most batch_size (8)"),
        (["--images", "0"], "images is 0: must be 1 to 1000"),
        (["--epoch", "99999"], "epoch is 99999: must be 1 to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(tmp_path, capsys, flags, message):
    assert main(["data", "show", *FLAGS, "--data-dir", str(tmp_path), *flags, "--out", str(tmp_path / "x.png")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
