"""The command line: what it resolves, and what it says to a mistake."""

import contextlib
import dataclasses
import re
import subprocess
import sys

import pytest
import yaml

from fastdhm.cli import COMMANDS, main
from fastdhm.cli.train import resolve_training
from fastdhm.config import TrainConfig
from fastdhm.engine.saved.checkpoint import read_config, write_config


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


@pytest.mark.parametrize("dataset", ["market1501", "dukemtmc", "reid-folder:/people"])
def test_reid_recipes_are_the_papers(dataset):
    deep, light = (resolve(f"--dataset {dataset} {arch}") for arch in ("", "--arch mobilenet"))
    assert (deep.arch, deep.weights, deep.freeze_epochs) == ("resnet50", "imagenet", 10)
    assert (deep.epochs, deep.lr, deep.milestones) == (60, 3e-4, (20, 40))
    assert (light.weights, light.freeze_epochs) == (None, 0)
    assert (light.epochs, light.lr, light.milestones) == (90, 1e-3, (30, 60))
    for config in (deep, light):
        assert (config.optimizer, config.betas, config.weight_decay) == ("amsgrad", (0.9, 0.999), 5e-4)
        assert (config.image_size, config.crop, config.flip, config.batch_size) == ((256, 128), "enlarge", True, 32)
        assert (config.label_smoothing, config.gamma, config.mimic_warmup, config.hold_out) == (0.1, 0.1, 0, False)


def test_recipes_of_the_other_cifar_networks():
    dense, wide = (resolve(f"--dataset cifar100 --arch {arch}") for arch in ("densenet-40-12", "wrn-28-10"))
    assert (dense.epochs, dense.milestones, dense.batch_size, dense.gamma) == (300, (150, 225), 64, 0.1)
    assert (wide.epochs, wide.milestones, wide.batch_size, wide.gamma) == (200, (60, 120, 160), 128, 0.2)
    assert (dense.weight_decay, wide.weight_decay) == (1e-4, 5e-4)


def test_an_image_size_is_a_number_or_a_pair_by_flag_and_by_file(tmp_path):
    (tmp_path / "c.yaml").write_text("image_size: [256, 128]\n")
    by_flag, by_file = resolve("--image-size [256,128]"), resolve(f"--config {tmp_path / 'c.yaml'}")
    assert by_flag == by_file == resolve("--image-size 256,128") and by_flag.image_size == (256, 128)
    assert resolve("--image-size 96").image_size == 96


def test_a_config_of_before_these_values_still_reads(tmp_path):
    """Rectangles, AMSGrad, pre-trained weights and what goes with them came after the first runs."""
    later = ("optimizer", "betas", "weights", "freeze_epochs", "dropout", "hold_out")
    config = TrainConfig(milestones=(1.0, 2.0))
    write_config(tmp_path, config)
    path = tmp_path / "config.yaml"
    values = yaml.safe_load(path.read_text())
    assert set(later) <= values.keys()
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if name not in later}))
    assert read_config(tmp_path) == config


def test_a_rectangular_run_is_read_back(tmp_path):
    config = TrainConfig(image_size=(64, 32), optimizer="amsgrad", betas=(0.8, 0.99))
    write_config(tmp_path, config)
    assert read_config(tmp_path) == config


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


@pytest.mark.parametrize("flag", ["--print-config", "--print_config"])
def test_printed_config_is_the_resolved_run_and_can_be_used(flag, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--dataset", "imagenet", "--arch", "resnet18", "--batch-size", "64", flag])
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
        ("--dataset synthetic --arch reznet50", "unknown architecture 'reznet50'; did you mean 'resnet50'"),
        ("--dataset synthetic --arch resnet51", "resnet51 has 51 layers: must be 6n\\+2"),
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
        ("--label-smothing 0.1", "did you mean --label-smoothing"),
        ("--opt adamw", "did you mean --optimizer"),
        ("--pretrained true", "did you mean --weights"),
        ("--epochs 0 --print_config", "epochs is 0"),
        ("--epochs many", "epochs is many: must be a whole number"),
        ("--config /bin/sh", "not text in UTF-8"),
        ("--accumulate 3", "accumulate is 3: must be a divisor of batch_size"),
        ("--crop middle", "crop"),
        ("--image-size 256x128", r"image_size is 256x128: must be a whole number or a list of 2, each a whole number;"),
        ("--image-size [0,8]", r"image_size is \(0, 8\): must be 1 to 8192"),
        ("--image-size [8,8,8]", "image_size is .*must be a whole number or"),
        ("--max-steps many", "max_steps is many: must be a whole number or null"),
        ("--optimizer adam", "unknown optimizer 'adam'; did you mean 'adamw'"),
        ("--optimizer amsgrad --nesterov true", "nesterov is True: must be false: only sgd has it"),
        ("--optimizer adamw --momentum 0.8", "momentum is 0.8: must be left out with adamw"),
        ("--betas [0.9,1]", "betas is .*two numbers in"),
        ("--betas [0.8,0.9]", "betas is .*left out: only amsgrad, adamw and muon use it"),
        ("--dropout 1", "dropout is 1.0"),
        ("--freeze-epochs -1", "freeze_epochs is -1"),
        ("--hold-out true --dataset synthetic", "only re-identification sets hold out"),
        ("--dataset dukemtmc", "withdrawn by its makers.* never downloaded"),
        ("--dataset market1501", "needs bounding_box_train/"),
        ("--lr fast", "lr"),
        ("--lr 1e39", "lr is 1e.39: must be below 3.4e.38, float32's largest number: set a smaller one"),
        (
            "--lr 1e308 --scale-lr true --batch-size 6400",
            r"lr is 1e.308: must be below .* after scale_lr \(6400 / 64 of it\): set a smaller one",
        ),
        ("--warmup-epochs 1e300", "warmup_epochs is 1e.300: must be 0 to 1,000,000 epochs"),
        ("--mimic-warmup 1e300", "mimic_warmup is 1e.300: must be 0 to 1,000,000 epochs"),
        ("--store-size -3", "store_size is -3: must be 1 to 65535 pixels, or 0 to store images as large as they are"),
        ("--store-size 1000000000", "store_size is 1000000000: must be 1 to 65535 pixels"),
        ("--store-size 1e9", "store_size is 1e9: must be a whole number"),
        ("--learning-rate 1", "did you mean --lr[?]"),
        ("--wd=1", "did you mean --weight-decay[?]"),
        ("--model resnet18", "did you mean --arch[?]"),
        ("--config /nowhere.yaml", "--config /nowhere.yaml: there is no such file"),
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


def test_a_files_setting_by_another_programs_name_is_told(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("wd: 1e-3")
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "there is no setting 'wd'; did you mean 'weight_decay'?" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "file"), [("train", "config.yaml"), ("compare", "compare.yaml")])
def test_a_folder_to_go_on_with_wants_its_flag(command, file, tmp_path, capsys):
    (tmp_path / file).touch()
    assert main([command, str(tmp_path)]) == 2
    assert f"did you mean --resume {tmp_path}?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_folder_to_go_on_with_that_does_not_exist_is_told(command, tmp_path, capsys):
    assert main([command, "--resume", str(tmp_path / "frist")]) == 2
    assert "frist does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]], ids=str)
def test_help_lists_every_command(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert not [name for name, does in COMMANDS.items() if not re.search(f"^  fastdhm {name} .*{does}$", text, re.M)]


@pytest.mark.parametrize("argv", [["data"], ["data", "--help"]], ids=str)
def test_a_groups_help_lists_its_commands(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "fastdhm data build" in text and "fastdhm data info" in text
    assert "fastdhm embed" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_its_flags_are(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: fastdhm {name} ")


def test_help_is_immediate_and_a_command_loads_no_other():
    """What only computing needs is imported after parsing; the program counts every module loaded until then."""
    program = (
        "import sys\nfrom fastdhm.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('loaded:', *sys.modules)"
    )

    def loaded(*argv):
        run = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=True)
        return set(run.stdout.rpartition("loaded: ")[2].split())

    assert not {"torch", "jsonargparse", "fastdhm.cli.parser"} & loaded("--help")
    command = loaded("data", "info", "--help")
    assert {name for name in command if name.startswith("fastdhm.cli.")} == {"fastdhm.cli.data", "fastdhm.cli.parser"}
    assert not {"torch", "numpy", "rich", "PIL"} & command


def test_python_runs_the_package_as_the_command():
    run = subprocess.run([sys.executable, "-m", "fastdhm", "trian"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "did you mean 'train'" in run.stderr


@pytest.mark.parametrize(("argv", "message"), [(["trian"], "'train'"), (["data", "biuld"], "'build'")], ids=str)
def test_a_mistyped_command_gets_the_nearest(argv, message, capsys):
    assert main(argv) == 2
    assert f"did you mean {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["eval", "--help"], ["--flip-average", "--metric", "--rerank", "--per-query", "ranking.png"]),
        (["embed", "--help"], ["--normalize", "--flip-average", "--batch-size", ".npy"]),
        (["bench", "reid", "--help"], ["--rounds", "Market-1501"]),
        (["--help"], ["fastdhm embed", "fastdhm bench reid", "people"]),
    ],
    ids=["eval", "embed", "bench-reid", "usage"],
)
def test_help_names_what_is_for_reid(argv, words, capsys):
    with contextlib.suppress(SystemExit):
        main(argv)
    text = capsys.readouterr().out
    assert not [word for word in words if word not in text]


def test_the_ranking_benchmark_runs(tmp_path, capsys):
    assert main(["bench", "reid", "--quick", "--rounds", "2", "--json", "--out", str(tmp_path)]) == 0
    assert "loop over auto" in capsys.readouterr().out


def test_every_train_flag_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "--batch-size N " in text
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text
