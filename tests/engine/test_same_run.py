"""A run is the same run on any number of processes: losses, terms, errors and weights, whatever its options."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import same_runs
from many_processes import outputs
from PIL import Image
from same_runs import numbers, train_all, train_all_by

from fastdhm.data.loaders.ffcv_library import why_not
from fastdhm.engine.saved.checkpoint import read_config
from fastdhm.engine.step import noise_seed

EVERYTHING = {  # that goes together
    "accumulate": 2, "clip_grad": 0.1, "ema": 0.9, "epochs": 2, "max_steps": 6, "progressive": 0.5, "grad_cosine": 2,
    "sampler": "bernoulli", "sample_every": "step", "corrupt_labels": 0.5, "label_smoothing": 0.1, "mimic_warmup": 1.0,
    "activation_checkpointing": True, "deterministic": True, "subset": 72,
    "mixup": 0.4, "cutmix": 1.0, "mix_off_epochs": 1, "class_weights": "auto",
    "augment": "rand-2-9", "color_jitter": [0.2, 0.2, 0.2, 0.1], "random_grey": 0.2, "random_erase": 0.5, "repeats": 3,
}  # fmt: skip
CASES = {
    "plain": {},
    "accumulate": {"accumulate": 2},
    "clip": {"clip_grad": 0.1},
    "ema": {"ema": 0.9},
    "progressive": {"progressive": 0.5, "epochs": 2, "max_steps": 6},
    "bernoulli": {"sampler": "bernoulli", "sample_every": "step"},
    "structural": {"sampler": "structural", "max_steps": None, "epochs": 2},
    "corrupt": {"corrupt_labels": 0.5},
    "recomputed": {"activation_checkpointing": True},
    "cosines": {"grad_cosine": 1},
    "deterministic": {"deterministic": True},
    "smoothing": {"label_smoothing": 0.1},
    "mixed": {"mixup": 0.4, "cutmix": 1.0, "grad_cosine": 1},
    "balanced": {"balanced_sampling": True, "subset": 95},
    "weighed": {"class_weights": "auto", "mixup": 0.4, "grad_cosine": 1, "subset": 95},
    "subset": {"subset": 60},
    "trivial": {"augment": "trivial", "random_erase": 0.5},
    "colours": {"color_jitter": [0.4, 0.4, 0.4, 0.1], "random_grey": 0.5},
    "repeats": {"augment": "rand-3-15", "repeats": 5, "accumulate": 2, "corrupt_labels": 0.5},
    "amsgrad": {"optimizer": "amsgrad", "lr": 0.001},
    "adamw": {"optimizer": "adamw", "lr": 0.001, "layer_decay": 0.8, "clip_grad": 0.1, "ema": 0.9},
    "patience": {"patience": 1, "epochs": 4, "max_steps": None, "lr": 0.05},
    "hours": {"hours": 9.0},
    "nesterov": {"nesterov": True, "scale_lr": True, "warmup_epochs": 0.5},
    "resident": {"loader": "resident", "image_size": 32, "crop": "pad", "pad": 2},
    "ffcv": {"loader": "ffcv", "crop": "scale"},
    "workers": {"crop": "shift", "workers": 1},
    "people": {"dataset": "reid-synthetic:8", "image_size": (32, 16), "crop": "enlarge"},
    "held_out": {"dataset": "reid-synthetic:8", "image_size": (32, 16), "hold_out": True},
    "bad_images": {"skip_bad": True, "batch_size": 12},
    "frozen": {"freeze_epochs": 1, "epochs": 2, "max_steps": 6, "weights": "imagenet"},
    "baseline": {"method": "baseline"},
    "alone": {"method": "baseline", "only_branch": "B1"},
    "dsl": {"method": "dsl"},
    "eager": {"impl": "eager"},
    "densenet": {"arch": "densenet-10-4"},
    "wide": {"arch": "wrn-10-1"},
}
MORE = ("accumulate", "structural", "people", "mixed", "weighed")  # by three and four processes, too
ROUNDED = {  # settings, and how far the log's losses may be off
    "float32": ({}, 1e-4),
    "bfloat16": ({"precision": "bfloat16"}, 0.05),
    "muon": ({"optimizer": "muon", "lr": 0.001, "accumulate": 2}, 0.05),  # it computes in bfloat16
    "compressed": ({"compress_gradients": True}, 0.01),
}


def assert_same(one, other):
    """In float64, up to the order of sums; cosines are in float32."""
    assert one.keys() == other.keys()
    close = {
        name: pytest.approx(value, rel=1e-8, abs=1e-5 if "cosine" in name else 1e-9) for name, value in one.items()
    }
    wrong = {name: (value, other[name]) for name, value in one.items() if other[name] != close[name]}
    assert not wrong


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """With batch norms in sync; without, a process's share is what a part of an accumulated batch is to one."""
    many = {"everything": EVERYTHING, "apart": {"sync_bn": False, "max_steps": 2}}
    train_all({**many, "apart": {"accumulate": 2, "max_steps": 2}}, tmp_path / "one")
    train_all_by(2, many, tmp_path / "two")
    assert_same(*(numbers(tmp_path / which / "everything") for which in ("one", "two")))
    learnt = [
        {name: value for name, value in numbers(tmp_path / which / "apart").items() if not judged(name)}
        for which in ("one", "two")
    ]
    assert_same(*learnt)


@pytest.mark.slow
def test_every_process_has_the_teacher(tmp_path):
    train_all({"teacher": {"method": "baseline"}}, tmp_path / "first")
    taught = {"teacher": str(tmp_path / "first" / "teacher"), "teacher_weight": 2.0, "temperature": 2.0}
    cases = {"dhm": {**taught, "sampler": "structural"}, "baseline": {**taught, "method": "baseline", "accumulate": 2}}
    train_all(cases, tmp_path / "one")
    train_all_by(2, cases, tmp_path / "two")
    for case in cases:
        assert_same(*(numbers(tmp_path / which / case) for which in ("one", "two")))


def judged(name):
    """Whether it comes from running statistics, which parts move in turn, and processes side by side."""
    return "running" in name or "batches_tracked" in name or "val_" in name


def test_noise_differs_between_processes_and_steps():
    seeds = {noise_seed(seed, step, rank) for seed in (0, 1) for step in range(9) for rank in range(9)}
    assert len(seeds) == 2 * 9 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.slow
def test_all_processes_take_the_loader_and_the_step_of_those_that_can_least(tmp_path):
    """Here the second has less memory, so that it would not hold the images by itself, and no compiler."""
    program = f"""
    import pathlib
    from unittest import mock
    sys.path.insert(0, {str(Path(same_runs.__file__).parent)!r})
    from same_runs import train_all
    from fastdhm.data.loaders import resident_loader
    from fastdhm.engine import train
    def check_room(needed_bytes, device, *, asked):
        if d.rank() == 1 and not asked:
            raise resident_loader.CannotHold("they are too many")
    settings = dict(loader="auto", image_size=32, max_steps=1)
    with d.joined("cpu"), mock.patch.object(resident_loader, "check_room", check_room):
        with mock.patch.object(train, "pick_compile", lambda *_: (d.rank() == 0, "")):
            train_all(dict(run=settings), pathlib.Path({str(tmp_path)!r}))
    """
    outputs(program, 2)
    config = read_config(tmp_path / "run")
    assert (config.loader, config.compile) == ("resident", "off")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    train_all({"begun": {"max_steps": 1}}, folder)
    draw = np.random.default_rng(0)
    for split, number in (("train", 40), ("val", 15)):
        for i in range(number):
            path = folder / "photos" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:200])
    given = {name: dict(settings) for name, settings in CASES.items() if name != "ffcv" or why_not() is None}
    if find_spec("timm"):
        given |= {"lion": {"optimizer": "lion", "lr": 0.001}, "lamb": {"optimizer": "lamb", "lr": 0.001}}
    if find_spec("schedulefree"):
        given["free"] = {"optimizer": "schedulefree:adamw", "schedule": "constant", "lr": 0.002, "accumulate": 2}
    given["frozen"]["weights"] = str(folder / "begun" / "network.safetensors")
    given["bad_images"]["dataset"] = f"folder:{folder / 'photos'}"
    return given | {name: {"wide": False, **settings} for name, (settings, _) in ROUNDED.items()}


@pytest.fixture(scope="module")
def runs(cases, tmp_path_factory):
    top = tmp_path_factory.mktemp("runs")
    train_all(cases, top / "1")
    train_all_by(2, cases, top / "2")
    for number in (3, 4):
        train_all_by(number, {name: cases[name] for name in MORE}, top / str(number))
    return top


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, "lion", "lamb", "free"])
def test_every_option_trains_as_one_process_does(runs, cases, name):
    if name not in cases:
        pytest.skip(f"FFCV: {why_not()}" if name == "ffcv" else "its library is not installed")
    assert_same(*(numbers(runs / number / name) for number in "12"))


@pytest.mark.slow
@pytest.mark.parametrize("number", "34")
@pytest.mark.parametrize("name", MORE)
def test_more_processes_train_as_one_does(runs, name, number):
    assert_same(*(numbers(runs / n / name) for n in ("1", number)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUNDED)
def test_in_lower_precision_the_losses_agree_within_its_rounding(runs, name):
    one, other = (numbers(runs / number / name) for number in "12")
    for key in one:
        if key.startswith("step") and "error" not in key:
            assert other[key] == pytest.approx(one[key], rel=ROUNDED[name][1], abs=1e-3), key
