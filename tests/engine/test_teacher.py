"""A teacher: what is loaded, what it is shown, whose classes it has, and runs that learn from it."""

import dataclasses
import re
import shutil

import pytest
import torch
import torch.nn.functional as F

from fastdhm import models
from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.engine.compiling import computes
from fastdhm.engine.run import Run
from fastdhm.engine.saved.checkpoint import load_checkpoint
from fastdhm.engine.saved.record import read_log
from fastdhm.engine.teacher import Found, Teacher, digest, find, order_of_classes
from runs import assert_same_state, command, rows_without_times

CONFIG = TrainConfig(dataset="folder:photos", arch="resnet8", teacher="x", device="cpu", precision="float32")
TEACHING = ("--method", "baseline", "--epochs", "1", "--max-steps", "2")


@pytest.fixture(scope="module")
def taught_by(tmp_path_factory):
    """A trained network: the run that the others learn from."""
    run_dir = tmp_path_factory.mktemp("teacher") / "teacher"
    assert main(command(run_dir, *TEACHING)) == 0
    return run_dir


def found(classes, told="resnet8 of runs/a"):
    return Found(torch.nn.Identity(), told, len(classes), classes)


def test_a_run_learns_from_a_teacher_and_the_log_shows_it(taught_by, tmp_path, capsys):
    before = digest(find(dataclasses.replace(CONFIG, teacher=str(taught_by)), 10).network)
    assert (
        main(
            command(
                tmp_path / "run",
                "--epochs",
                "1",
                "--log-every",
                "5",
                "--mimic-warmup",
                "0",
                "--teacher",
                str(taught_by),
            )
        )
        == 0
    )
    assert f"teacher  resnet8 of {taught_by}\n" in capsys.readouterr().out.replace("\n ", "")
    row = next(row for row in read_log(tmp_path / "run") if row["kind"] == "step")
    of_teacher = {name for name in row if "teacher" in name}
    assert of_teacher == {"train_error/teacher", *(f"mimic/teacher->B{m}" for m in range(3))}
    terms = [value for name, value in row.items() if name.startswith(("ce/", "mimic/"))]
    assert sum(terms) == pytest.approx(row["loss"], rel=1e-5)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["teacher"] == before, "it has learnt nothing"


def test_a_stopped_run_goes_on_bit_for_bit_with_the_same_teacher_only(taught_by, tmp_path, capsys):
    teacher = shutil.copytree(taught_by, tmp_path / "a")
    flags = ("--method", "baseline", "--epochs", "1", "--teacher-weight", "2", "--temperature", "3", "--log-every", "5")
    assert main(command(tmp_path / "whole", *flags, "--teacher", str(teacher))) == 0
    assert main(command(tmp_path / "cut", *flags, "--teacher", str(teacher), "--max-steps", "4")) == 0
    moved = teacher.rename(tmp_path / "b")
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 2
    assert "a is not there: name a run" in capsys.readouterr().err
    other = load_checkpoint(moved / "last.pt")
    other["model"]["trunk.fc.bias"][0] += 1
    (tmp_path / "other").mkdir()
    torch.save(other, tmp_path / "other" / "last.pt")
    shutil.copy(moved / "config.yaml", tmp_path / "other")
    assert main(["train", "--resume", str(tmp_path / "cut"), "--teacher", str(tmp_path / "other")]) == 2
    assert "has other weights than the one that" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "cut"), "--teacher", str(moved)]) == 0
    assert_same_state(tmp_path / "whole" / "last.pt", tmp_path / "cut" / "last.pt", same_best=False)
    assert rows_without_times(tmp_path / "whole")[-1] == rows_without_times(tmp_path / "cut")[-1]


def test_its_images_are_the_runs_in_its_own_normalisation_and_size():
    torch.manual_seed(0)
    network = models.build("resnet8", 3, ()).trunk
    its = Found(network, "it", 3, ("c", "a", "b"), (0.2, 0.3, 0.4), (0.1, 0.2, 0.3))
    teacher = Teacher(its, dataclasses.replace(CONFIG, teacher_size=(48, 40)), ("a", "b", "c"))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    image_BCHW = torch.rand(4, 3, 24, 20)
    ours, theirs = ((image_BCHW - _channels(mean)) / _channels(std) for mean, std in (
        (CONFIG.mean, CONFIG.std), (its.mean, its.std)
    ))  # fmt: skip
    with torch.no_grad():
        expected = network.eval()(F.interpolate(theirs, (48, 40), mode="bilinear", antialias=True))[:, [1, 2, 0]]
    for forward in (teacher, teacher.logits(0)):
        torch.testing.assert_close(forward(ours), expected, rtol=1e-4, atol=1e-4)
        assert not forward(ours.requires_grad_()).requires_grad


def _channels(values):
    return torch.tensor(values)[:, None, None]


@pytest.mark.parametrize(
    ("ours", "theirs", "order"),
    [
        (("a", "b"), ("a", "b"), None),
        (("a", "b", "c"), ("b", "c", "a"), [2, 0, 1]),
        (("café", "a"), ("a", "cafe\u0301"), [1, 0]),  # both forms that Unicode has
        (("café", "a"), ("cafe\u0301", "a"), None),
        (("class 0", "class 1"), ("a", "b"), None),
        (("n00000001", "n00000002"), ("tench", "goldfish"), None),  # torchvision has words, ImageNet's folders numbers
    ],
)  # fmt: skip
def test_classes_are_compared_by_name_where_both_have_names(ours, theirs, order):
    found_order = order_of_classes(ours, found(theirs), CONFIG)
    assert (found_order if found_order is None else found_order.tolist()) == order


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (("a", "b"), ("a", "c"), "knows other classes than folder:photos (it lacks b; it has c beside)"),
        (("a", "b"), ("a", "b", "c", "d"), "(it has c, d beside)"),
        (("a", "b"), ("a", "b", "b"), "(a name twice)"),
        (("class 0", "class 1"), ("a",), "knows 1 class, folder:photos has 2"),
        (tuple("abcdef"), ("a",), "it lacks b, c, d and 2 more"),
    ],
)  # fmt: skip
def test_other_classes_are_refused_by_name(ours, theirs, message):
    with pytest.raises(ValueError, match=rf"resnet8 of runs/a.*{re.escape(message)}"):
        order_of_classes(ours, found(theirs), CONFIG)


def test_a_file_of_another_program_needs_its_architecture(tmp_path):
    torch.manual_seed(0)
    network, path = models.build("resnet14", 10, ()).trunk, tmp_path / "theirs.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t.half() for n, t in network.state_dict().items()}}, path)
    asked = dataclasses.replace(CONFIG, teacher=str(path))
    with pytest.raises(ValueError, match="not a checkpoint of fastdhm; if it is of another program, give --teacher-ar"):
        find(asked, 10)
    taken = find(dataclasses.replace(asked, teacher_arch="resnet14"), 10)
    assert "resnet14 of" in taken.told and "'module.'" in taken.told and "as this run" in taken.told
    torch.testing.assert_close(taken.network.fc.weight, network.fc.weight, rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="has no classifier for the 7 classes of folder:photos"):
        find(dataclasses.replace(asked, teacher_arch="resnet14"), 7)
    with pytest.raises(ValueError, match="teacher_arch is resnet14: timm:resnet18 says its own"):
        find(dataclasses.replace(asked, teacher="timm:resnet18", teacher_arch="resnet14"), 10)
    with pytest.raises(ValueError, match="teacher_arch is resnet14: the run .* says its own, leave it out"):
        find(dataclasses.replace(asked, teacher=str(tmp_path), teacher_arch="resnet14"), 10)


def test_a_teacher_that_does_not_take_the_images_says_what_to_set(taught_by, tmp_path, monkeypatch, capsys):
    def only_large(self, image_BCHW):
        assert image_BCHW.shape[-1] == 64, "Wrong image height!\nas torchvision's transformers say"
        return plain(self, image_BCHW)

    plain = Teacher.forward
    monkeypatch.setattr(Teacher, "forward", only_large)
    assert main(command(tmp_path / "run", "--teacher", str(taught_by))) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "does not take images of 32x32 (Wrong image height!): set --teacher-size 32" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--teacher-weight", "2"), "teacher_weight is 2.0: must be left out: there is no teacher"),
        (("--teacher-size", "64"), "teacher_size is 64: must be left out: there is no teacher"),
        (("--teacher", "t.pt", "--teacher-weight", "-1"), "teacher_weight is -1.0: must be a finite number, 0 or more"),
        (("--teacher", "torchvision:resnet19"), "torchvision has no network 'resnet19'; did you mean torchvision:resn"),
        (("--teacher", "nowhere"), "nowhere is not there: name a run directory"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_before_anything_is_trained(flags, message, tmp_path, capsys):
    assert main(command(tmp_path / "run", *flags)) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["bernoulli", "structural"])
def test_compiled_and_sampled_it_teaches_the_same(taught_by, tmp_path, sampler):
    config = dataclasses.replace(
        CONFIG,
        branch_sets={"none": 0.5, "B2": 0.5} if sampler == "structural" else None,
        dataset="synthetic:80",
        teacher=str(taught_by),
        sampler=sampler,
        image_size=32,
        sample_every="step",
    )
    classes = tuple(load_checkpoint(taught_by / "last.pt")["classes"])
    run = Run(config, tmp_path, classes)
    run.begin_epoch()
    image_BCHW, target_B = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    for active in run.branch_sets:
        given = (image_BCHW, target_B, run.taught(run.weights[active]), active)
        state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        plain = computes(run, compiled=False)(*given)
        run.model.load_state_dict(state)
        compiled = computes(run, compiled=True)(*given)
        run.model.load_state_dict(state)
        for one, other in zip(plain, compiled, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
