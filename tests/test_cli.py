"""The command line: what it resolves, and what it says to a mistake."""

import dataclasses
import re

import pytest
import yaml

from fastdhm.cli import main, resolve_training
from fastdhm.config import TrainConfig


def resolve(text):
    return resolve_training(text.split())[0]


def test_alone_it_is_the_demo():
    config = resolve("")
    assert (config.dataset, config.method, config.image_size) == ("fashion-mnist", "dhm", 28)


def test_recipes_are_the_papers():
    cifar = resolve("--dataset cifar100 --arch resnet32")
    assert (cifar.epochs, cifar.lr, cifar.milestones, cifar.gamma) == (164, 0.1, (81, 122), 0.1)
    assert (cifar.batch_size, cifar.weight_decay, cifar.momentum, cifar.nesterov) == (128, 1e-4, 0.9, False)
    assert (cifar.crop, cifar.pad, cifar.flip, cifar.mimic_warmup) == ("pad", 4, True, 0)
    deep = resolve("--dataset cifar100 --arch resnet110")
    assert (deep.warmup, deep.warmup_epochs, deep.warmup_lr) == ("constant", 1, 0.01)
    imagenet = resolve("--dataset imagenet --arch resnet50")
    assert (imagenet.epochs, imagenet.milestones, imagenet.batch_size) == (90, (30, 60), 256)
    assert (imagenet.image_size, imagenet.crop, imagenet.crop_ratio, imagenet.keep) == (224, "scale", 0.875, "best")


@pytest.mark.parametrize(("flags", "crop"), [("--method dhm", "shift"), ("--method baseline", "scale")])
def test_shallow_imagenet_dhm_goes_without_scale(flags, crop):
    assert resolve(f"--dataset imagenet --arch resnet18 {flags}").crop == crop


def test_flag_over_file_over_recipe(tmp_path):
    (tmp_path / "c.yaml").write_text("dataset: cifar10\nlr: 0.3\nepochs: 7\n")
    config = resolve(f"--config {tmp_path / 'c.yaml'} --epochs 9")
    assert (config.dataset, config.arch, config.lr, config.epochs, config.batch_size) == (
        "cifar10",
        "resnet32",
        0.3,
        9,
        128,
    )


def test_printed_config_is_the_resolved_run_and_can_be_used(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--dataset", "imagenet", "--arch", "resnet18", "--batch-size", "64", "--print_config"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["crop"] == "shift"
    (tmp_path / "c.yaml").write_text(text)
    assert resolve(f"--config {tmp_path / 'c.yaml'}") == resolve("--dataset imagenet --arch resnet18 --batch-size 64")


def test_dashes_and_underscores():
    assert resolve("--batch_size 7") == resolve("--batch-size 7")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset cifar11", "unknown data set 'cifar11'; did you mean 'cifar10"),
        ("--dataset synthetic --arch resnet51", "unknown architecture 'resnet51'; did you mean 'resnet50'"),
        ("--dataset synthetic --method dhn", "unknown method 'dhn'; did you mean 'dhm'"),
        ("--dataset synthetic --branches [B7]", "unknown branch of resnet8 'B7'.*B1, B2"),
        ("--dataset synthetic --device tpu", "device is 'tpu'"),
        ("--dataset synthetic --device cuda:99", "device is 'cuda:99'.*--device cpu"),
        ("--dataset synthetic --device cpu --precision float16", "precision is float16.*bfloat16"),
        ("--dataset folder:/nowhere", "/nowhere"),
        ("--lr 0", "lr is 0.0: must be"),
        ("--lr nan", "lr.*nan"),
        ("--epochs 0", "epochs is 0: must be 1 or more"),
        ("--epochs -3", "epochs is -3"),
        ("--batch-size 0", "batch_size is 0"),
        ("--workers -1", "workers is -1"),
        ("--max-steps 0", "max_steps is 0"),
        ("--seed -1", "seed is -1"),
        ("--momentum 1", "momentum is 1.0"),
        ("--std [0,1,1]", "std is"),
        ("--mean [1,2]", "mean"),
        ("--milestones [5,3]", "milestones is"),
        ("--milestones=[-1]", "milestones is"),
        ("--epchs 3", "did you mean --epochs"),
        ("--epochs 0 --print_config", "epochs is 0"),
        ("--epochs many", "epochs is many: must be a whole number"),
        ("--config /bin/sh", "not a text file"),
        ("--accumulate 3", "accumulate is 3: must be a divisor of batch_size"),
        ("--crop middle", "crop"),
        ("--lr fast", "lr"),
        ("--learning-rate 1", "learning-rate"),
        ("--config /nowhere.yaml", "nowhere.yaml"),
        ("extra", "extra"),
    ],
)
def test_a_mistake_is_one_line_without_a_traceback(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data-dir", str(tmp_path / "data"), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastdhm: error: ")
    assert "Traceback" not in error
    assert re.search(message, error), error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["data", "--help"]], ids=str)
def test_help(argv, capsys):
    assert main(argv) == 0
    assert "fastdhm train" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "message"), [(["trian"], "'train'"), (["data", "biuld"], "'build'")], ids=str)
def test_a_mistyped_command_gets_the_nearest(argv, message, capsys):
    assert main(argv) == 2
    assert f"did you mean {message}" in capsys.readouterr().err


def test_every_train_flag_has_a_help_text(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "--batch-size BATCH_SIZE\n" in text
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text
