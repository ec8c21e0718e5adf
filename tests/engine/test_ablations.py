"""The paper's ablations as runs: a branch alone (Table 5), corrupt labels (App. E), weights of the loss's parts."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastdhm import methods, models
from fastdhm.cli import main
from fastdhm.cli.train import resolve_training
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.loader import Batch
from fastdhm.data.sources.corrupt import corrupt_targets
from fastdhm.data.sources.subset import balanced_subset
from fastdhm.engine.run import Run
from fastdhm.engine.saved.checkpoint import load_checkpoint, read_config
from fastdhm.engine.saved.record import read_log

FLAGS = "--dataset synthetic:64 --arch resnet8 --batch-size 16 --loader torch --workers 0 --device cpu --compile off"


def train(run_dir, *flags: str) -> int:
    folders = ["--run-dir", str(run_dir), "--data-dir", str(run_dir.parent / "data")]
    return main(["train", *FLAGS.split(), "--precision", "float32", *folders, *flags])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    assert train(run_dir, "--only-branch", "B2", "--epochs", "2", "--log-every", "1") == 0
    return run_dir


def test_a_branch_alone_is_named_in_log_config_and_checkpoint(alone):
    config, rows = read_config(alone), read_log(alone)
    assert (config.only_branch, config.method) == ("B2", "baseline")
    named = {name for row in rows for name in row if "/" in name}
    assert named == {"ce/B2", "train_error/B2", "val_error/B2", "val_top5_error/B2", "val_ce/B2"}
    saved = load_checkpoint(alone / "last.pt")
    assert saved["position"]["best_error"] == min(row["val_error/B2"] for row in rows if "val_error/B2" in row)


def test_what_is_left_of_a_branch_alone_is_its_network(alone, capsys):
    network = models.build_alone("resnet8", 10, "B2").strip()
    network.load_state_dict(load_file(alone / "network.safetensors"))
    assert not any(name.startswith(("trunk.layer2", "trunk.fc")) for name in network.state_dict())
    capsys.readouterr()
    assert main(["eval", str(alone), "--json", "--workers", "0"]) == 0
    results = json.loads(capsys.readouterr().out)
    last = [row for row in read_log(alone) if "val_error/B2" in row][-1]
    assert results.keys() == {"B2", "network"} and results["B2"] == results["network"]
    assert results["B2"]["top1_error"] == last["val_error/B2"]
    assert main(["eval", str(alone / "network.safetensors"), "--json", "--workers", "0"]) == 0
    assert json.loads(capsys.readouterr().out) == {"network": results["B2"]}


@pytest.mark.slow
def test_a_branch_alone_of_any_network_learns_the_same_with_activations_computed_again(tmp_path):
    """The fork lies in the middle of a row whose activations are dropped."""
    states = []
    for recomputed in ("false", "true"):
        flags = ["--arch", "torchvision:mobilenet_v3_small", "--only-branch", "B2", "--max-steps", "2"]
        assert train(tmp_path / recomputed, *flags, "--activation-checkpointing", recomputed) == 0
        states.append(load_checkpoint(tmp_path / recomputed / "last.pt")["model"])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_branch_alone_resumes_bit_for_bit(alone, tmp_path):
    assert train(tmp_path / "cut", "--only-branch", "B2", "--epochs", "2", "--log-every", "1", "--max-steps", "5") == 0
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
    one, other = (load_checkpoint(folder / "last.pt") for folder in (alone, tmp_path / "cut"))
    for part in ("model", "optimizer", "rng", "sums"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)


def test_the_norms_of_a_branch_alone_are_fused_as_any_networks(tmp_path):
    run = Run(TrainConfig(arch="resnet8", method="baseline", only_branch="B2", device="cpu"), tmp_path, ("a", "b"))
    assert run.forward.describe(()) == "norms and convolutions by fused ops"
    image_BCHW = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run.forward(image_BCHW), run.model(image_BCHW), rtol=1e-4, atol=1e-5)


def test_the_main_branch_alone_is_the_baseline(tmp_path):
    assert train(tmp_path / "one", "--only-branch", "B0", "--max-steps", "2") == 0
    assert train(tmp_path / "other", "--method", "baseline", "--max-steps", "2") == 0
    one, other = (load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("one", "other"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only-branch", "B9"], "unknown branch of resnet8 'B9'"),
        (
            ["--only-branch", "B1", "--method", "dhm"],
            "must be left out with dhm: only the baseline trains one branch alone",
        ),
        (["--only-branch", "B1", "--weights", "a.pth"], "B0 or left out: the weights (a.pth) are of a whole trunk"),
        (["--only-branch", "B1", "--sampler", "bernoulli"], "baseline has no mimicking"),
        (["--corrupt-labels", "1.5"], "corrupt_labels is 1.5: must be in [0, 1]"),
        (["--corrupt-labels", "-0.1"], "corrupt_labels is -0.1: must be in [0, 1]"),
        (["--corrupt-seed", "3"], "corrupt_seed is 3: must be left out: corrupt_labels is 0"),
        (["--corrupt-labels", "0.1", "--corrupt-seed", "-3"], "corrupt_seed is -3: must be in [0, 2**63)"),
        (["--mimic-weight", "-1"], "mimic_weight is -1.0: must be a finite number, 0 or more"),
        (["--mimic-weight", "2", "--method", "dsl"], "mimic_weight is 2.0: dsl has no mimicking"),
        (["--ce-weight", "2", "--method", "baseline"], "ce_weight is 2.0: baseline has no side branches"),
        (["--branches", "B1,B1"], "branches has B1 twice: name each once"),
        (["--temperature", "1e-9"], "temperature is 1e-09: must be a number from 1e-6 to 1e6"),
        (["--branches", "B1,B7"], "unknown branch of resnet8 'B7'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, capsys, flags, message):
    assert train(tmp_path / "run", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "branches"),
    [("B1", ("B1",)), ("[B1]", ("B1",)), ("B1,B2,B3", ("B1", "B2", "B3")), ("[B1,B2]", ("B1", "B2")), ("null", None)],
)
@pytest.mark.parametrize("form", ["--branches={}", "--branches {}"])
def test_a_list_needs_no_brackets(form, text, branches):
    flags = form.format(text).split()
    config, _ = resolve_training(["--dataset", "imagenet", "--arch", "resnet18", *flags, "--milestones", "3,5"])
    assert (config.branches, config.milestones, config.image_size) == (branches, (3, 5), 224)


@pytest.mark.parametrize("direction", ["both", "top-down", "bottom-up"])
def test_lambda_and_mu_weigh_all_terms_but_the_main_branchs(direction):
    plain_MM = methods.weight_matrix("dhm", 3, direction)
    weights_MM = methods.weight_matrix("dhm", 3, direction, ce_weight=0.5, mimic_weight=3.0)
    assert weights_MM.diag().tolist() == [1, 0.5, 0.5]
    off = ~torch.eye(3, dtype=torch.bool)
    assert torch.equal(weights_MM[off], 3 * plain_MM[off])
    assert methods.weight_matrix("dsl", 2, ce_weight=0.25).tolist() == [[1, 0], [0, 0.25]]


def test_the_loss_of_a_run_has_these_weights(tmp_path):
    flags = [
        "--ce-weight",
        "0.5",
        "--mimic-weight",
        "2",
        "--temperature",
        "3",
        "--mimic-warmup",
        "0",
        "--max-steps",
        "1",
    ]
    assert train(tmp_path / "run", *flags, "--log-every", "1") == 0
    row = next(row for row in read_log(tmp_path / "run") if row["kind"] == "step")
    expected = row["ce/B0"] + 0.5 * (row["ce/B1"] + row["ce/B2"])
    expected += 2 * sum(value for name, value in row.items() if name.startswith("mimic/"))
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_run_learns_from_corrupt_labels_whoever_loads(tmp_path):
    """The labels that a batch brings do not matter: a table by sample index has those to learn."""
    config = TrainConfig(arch="resnet8", corrupt_labels=0.5, corrupt_seed=9, device="cpu", precision="float32")
    run, target_N = Run(config, tmp_path, tuple("abcde")), np.arange(40) % 5
    run.labelling.learn_from(target_N, run.classes)
    index_B = torch.tensor([3, 39, 0])
    batch = Batch(torch.zeros(3, 32, 32, 3, dtype=torch.uint8), torch.from_numpy(target_N)[index_B], index_B)
    corrupt_N = corrupt_targets(target_N, 5, 0.5, 9)
    assert run.prepare(batch, 0, 32)[1].target_B.tolist() == corrupt_N[index_B].tolist()
    assert run.labelling.changed == (corrupt_N != target_N).sum() > 0
    part = Run(dataclasses.replace(config, subset=10), tmp_path, tuple("abcde"))
    part.labelling.learn_from(target_N, part.classes)
    learnt = balanced_subset(target_N, 5, 10)
    assert part.labelling.changed == (corrupt_N != target_N)[learnt].sum() < run.labelling.changed


def test_corrupt_labels_are_told_recorded_kept_and_never_validated_on(tmp_path, capsys):
    flags = ["--corrupt-labels", "1", "--corrupt-seed", "4", "--epochs", "2", "--lr", "1e-9", "--weight-decay", "0"]
    flags += ["--warmup-epochs", "0", "--method", "baseline"]
    assert train(tmp_path / "whole", *flags) == 0
    assert "100% of the labels drawn at random, " in capsys.readouterr().out
    config = read_config(tmp_path / "whole")
    assert (config.corrupt_labels, config.corrupt_seed) == (1, 4)
    assert train(tmp_path / "cut", *flags, "--max-steps", "3") == 0
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    for part in ("model", "optimizer", "sums"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)
    assert main(["train", "--resume", str(tmp_path / "cut"), "--corrupt-seed", "5"]) == 2
    assert "corrupt_seed: 4 -> 5" in capsys.readouterr().err
    assert train(tmp_path / "true", *flags[4:]) == 0  # a network that hardly moves is judged on the same labels
    whole, true = (read_log(tmp_path / name)[-1] for name in ("whole", "true"))
    assert whole["val_ce/B0"] == pytest.approx(true["val_ce/B0"], abs=1e-3)
    assert whole["ce/B0"] != pytest.approx(true["ce/B0"], abs=1e-3)
