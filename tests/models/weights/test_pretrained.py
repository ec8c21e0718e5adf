"""Pre-trained trunks: from files, from torchvision's cache, without a network, and weights of another architecture."""

import argparse
import re
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from fastdhm import models

FILE = "resnet18-f37072fd.pth"  # as torchvision names its ImageNet weights of resnet18


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(5)
    return models.build("resnet8", 10, ()).trunk


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.build("resnet8", 7)


def save(network, path):
    state = network.state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["trunk.pth", "trunk.pt", "trunk.safetensors"])
def test_a_file_with_other_classes_gives_all_but_the_classifier(trunk, model, tmp_path, name):
    before = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    pretrained = models.load_pretrained(model, "resnet8", save(trunk, tmp_path / name))
    for n, tensor in model.state_dict().items():
        new = not n.startswith("trunk.") or n.startswith("trunk.fc.")
        assert torch.equal(tensor, before[n] if new else trunk.state_dict()[n.removeprefix("trunk.")]), n
        if n in pretrained.new or n in pretrained.loaded:
            assert (n in pretrained.new) == new, n
    assert sorted(pretrained.new + pretrained.loaded) == sorted(n for n, _ in model.named_parameters())
    assert pretrained.source == str(tmp_path / name)


def test_a_file_with_as_many_classes_gives_the_classifier_too(trunk, tmp_path):
    model = models.build("resnet8", 10, ("B2",))
    pretrained = models.load_pretrained(model, "resnet8", str(save(trunk, tmp_path / "trunk.pth")))
    assert torch.equal(model.trunk.fc.weight, trunk.fc.weight)
    assert pretrained.new == tuple(f"branches.{n}" for n, _ in model.branches.named_parameters())


def test_a_file_without_a_classifier_or_batch_counts_is_enough(trunk, model, tmp_path):
    state = {n: t for n, t in trunk.state_dict().items() if not n.startswith("fc.") and "num_batches" not in n}
    torch.save(state, tmp_path / "features.pth")
    pretrained = models.load_pretrained(model, "resnet8", tmp_path / "features.pth")
    assert torch.equal(model.trunk.layer3[0].bn2.running_var, trunk.layer3[0].bn2.running_var)
    assert [n for n in pretrained.new if n.startswith("trunk.")] == ["trunk.fc.weight", "trunk.fc.bias"]


@pytest.mark.parametrize("arch", ["mobilenet", "wrn-10-1", "densenet-10-4"])
def test_any_family_loads_its_own_stripped_network(arch, tmp_path):
    network = models.build(arch, 10).strip()
    model = models.build(arch, 3)
    pretrained = models.load_pretrained(model, arch, save(network, tmp_path / "network.safetensors"))
    assert torch.equal(next(model.trunk.parameters()), next(network.parameters()))
    last = "classifier" if arch == "mobilenet" else "fc"
    assert [n for n in pretrained.new if n.startswith("trunk.")] == [f"trunk.{last}.weight", f"trunk.{last}.bias"]


def test_weights_of_another_network_are_refused_and_nothing_changes(model, tmp_path):
    before = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    other = save(models.build("resnet14", 1000, ()).trunk, tmp_path / "resnet14.pth")
    with pytest.raises(
        ValueError, match=r"another network than resnet8: tensors 36 unknown \(layer1.1.conv1.weight.*\.\.\."
    ):
        models.load_pretrained(model, "resnet8", other)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_each_kind_of_difference_is_counted_and_named(trunk, model, tmp_path):
    state = trunk.state_dict()
    del state["conv1.weight"]
    state |= {"head.weight": torch.zeros(3), "bn1.bias": torch.zeros(5)}
    torch.save(state, tmp_path / "wrong.pth")
    message = (
        r"1 missing \(conv1.weight\); 1 unknown \(head.weight\); 1 of another shape \(bn1.bias \(5,\) instead of \(16"
    )
    with pytest.raises(ValueError, match=message):
        models.load_pretrained(model, "resnet8", tmp_path / "wrong.pth")


def test_a_classifier_of_other_features_is_another_network(trunk, model, tmp_path):
    torch.save(trunk.state_dict() | {"fc.weight": torch.zeros(10, 9)}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"of another shape \(fc.weight \(10, 9\) instead of \(7, 64\)"):
        models.load_pretrained(model, "resnet8", tmp_path / "wrong.pth")


class Held(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


SAVED = {
    "DataParallel": (lambda net: nn.DataParallel(net).state_dict(), "names that begin with 'module.'"),
    "compiled in DDP": (lambda net: Held(module=Held(_orig_mod=net)).state_dict(), "names that begin with 'module.'"),
    "a part compiled": (
        lambda net: {n.replace("layer1.", "layer1._orig_mod."): t for n, t in net.state_dict().items()}, None,
    ),
    "a checkpoint": (lambda net: {"epoch": 3, "best": torch.ones(()), "state_dict": net.state_dict()}, "its 'state_d"),
    "timm's": (lambda net: {"model": net.state_dict(), "optimizer": {"state": {0: {"step": torch.ones(())}}}}, "its"),
    "Lightning's": (
        lambda net: {"state_dict": Held(net=net, loss=nn.PReLU()).state_dict()},
        "its 'state_dict', names that begin with 'net.', without loss.weight",
    ),
    "a backbone and its head": (
        lambda net: {n: t for n, t in Held(backbone=net, head=nn.Linear(3, 3)).state_dict().items() if ".fc." not in n},
        "names that begin with 'backbone.', without head.weight, head.bias",
    ),
    "our own": (lambda net: {"model": models.BranchedModel(net, {}, {}).state_dict()}, "its 'model', .* 'trunk.'"),
    "torchvision's references": (
        lambda net: {"model": net.state_dict(), "args": argparse.Namespace(output_dir=Path("x"), best=np.float64(1))},
        "its 'model'",
    ),
    "VISSL's": (
        lambda net: {"classy_state_dict": {"base_model": {"model": {"trunk": Held(_feature_blocks=net).state_dict()}}}},
        "its 'classy_state_dict.base_model.model.trunk', names that begin with '_feature_blocks.'",
    ),
    "MoCo's": (
        lambda net: {n: t for n, t in Held(encoder_q=net).state_dict().items() if ".fc." not in n}
        | {"encoder_q.fc.0.weight": torch.zeros(2, 2)},
        "names that begin with 'encoder_q.', without encoder_q.fc.0.weight",
    ),
    "half": (lambda net: {n: t.half() if t.ndim else t for n, t in net.state_dict().items()}, "float16 converted"),
    "half with its counts": (
        lambda net: {n: (t + 70_000 * (t.ndim == 0)).half() for n, t in net.state_dict().items()}, "float16 converted",
    ),
    "double": (lambda net: {n: t.double() if t.ndim else t for n, t in net.state_dict().items()}, "float64 converted"),
    "sparse": (lambda net: net.state_dict() | {"fc.weight": net.fc.weight.detach().to_sparse()}, "sparse .* convert"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAVED)
def test_files_of_other_programs_are_loaded_with_a_note(case, trunk, tmp_path):
    make, told = SAVED[case]
    torch.save(make(trunk), tmp_path / "file.pth")
    model = models.build("resnet8", 10, ("B1",))
    pretrained = models.load_pretrained(model, "resnet8", tmp_path / "file.pth")
    assert re.search(told, ", ".join(pretrained.notes)) if told else not pretrained.notes
    torch.testing.assert_close(model.trunk.layer3[0].conv2.weight, trunk.layer3[0].conv2.weight, rtol=1e-3, atol=1e-3)
    assert model.trunk.conv1.weight.dtype == torch.float32


@pytest.mark.parametrize("entry", ["model_ema", "model_ema.module", "student"])
def test_of_several_networks_in_a_file_one_is_named(entry, trunk, tmp_path):
    """torchvision's references keep an average beside the network; tools for distillation a student and a teacher."""
    wanted = {n: t + t.is_floating_point() for n, t in trunk.state_dict().items()}
    prefix, place = ("student.", "state_dict") if entry == "student" else ("module.", "model_ema")
    saved = {"model": trunk.state_dict(), "state_dict": {f"teacher.{n}": t for n, t in trunk.state_dict().items()}}
    saved[place] = saved.get(place, {}) | {f"{prefix}{n}": t for n, t in wanted.items()}
    torch.save(saved, tmp_path / "file.pth")
    model = models.build("resnet8", 10, ())
    models.load_pretrained(model, "resnet8", f"{tmp_path / 'file.pth'}:{entry}")
    assert torch.equal(model.trunk.conv1.weight, wanted["conv1.weight"])
    with pytest.raises(ValueError, match="no network that fits under 'ema': give .*file.pth:model or"):
        models.load_pretrained(model, "resnet8", f"{tmp_path / 'file.pth'}:ema")


@pytest.mark.parametrize("classes", [10, 7])
def test_a_checkpoint_of_a_run_gives_its_branches_too(classes, tmp_path):
    torch.manual_seed(3)
    theirs, model = models.build("resnet8", 10, ("B1",)), models.build("resnet8", classes)
    torch.save({"model": theirs.state_dict()}, tmp_path / "last.pt")
    before = model.state_dict() | {}
    found = models.load_pretrained(model, "resnet8", tmp_path / "last.pt")
    other = classes != 10
    for name, tensor in model.state_dict().items():
        new = name.startswith("branches.B2.") or (other and ".fc." in name)
        assert torch.equal(tensor, before[name] if new else theirs.state_dict()[name]), name
        assert (name in found.new) == (new and name not in dict(model.named_buffers()))
    notes = ("its classifier of 10 classes left out", "its B1 but for the classifier") if other else ("its B1",)
    assert found.notes == ("its 'model', names that begin with 'trunk.'", *notes)


def test_a_branch_that_is_built_otherwise_stays_new_and_is_named(tmp_path):
    theirs, model = models.build("resnet8", 10, ("B1", "B2")), models.build("resnet8", 10, ("B1", "B2"))
    swapped = {"B1": "B2", "B2": "B1"}
    state = {
        f"branches.{swapped[n.split('.')[1]]}.{n.split('.', 2)[2]}" if n.startswith("branches.") else n: t
        for n, t in theirs.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "last.pt")
    found = models.load_pretrained(model, "resnet8", tmp_path / "last.pt")
    assert found.notes[1:] == ("its B1 is built otherwise, left out", "its B2 is built otherwise, left out")
    assert torch.equal(model.trunk.fc.weight, theirs.trunk.fc.weight)


def _with(name, tensor):
    return lambda net: net.state_dict() | {name: tensor}


UNUSABLE = {
    "NaN": (_with("bn1.bias", torch.full((16,), torch.nan)), r"holds 1 tensor with NaN or infinity \(bn1.bias\)"),
    "overflow": (_with("bn1.bias", torch.full((16,), 1e300, dtype=torch.double)), "1 tensor with NaN or infinity"),
    "whole numbers": (_with("bn1.bias", torch.ones(16, dtype=torch.int8)), r"be trained \(bn1.bias int8\).*float32"),
    "complex": (_with("bn1.bias", torch.ones(16, dtype=torch.cfloat)), "bn1.bias complex64"),
    "counters of floats": (_with("bn1.num_batches_tracked", torch.tensor(1.5)), "num_batches_tracked float32"),
    "two that fit": (
        lambda net: {"model": net.state_dict(), "ema": net.state_dict()},
        "holds 2 networks that fit: give one of them, .*file.pth:model or .*file.pth:ema",
    ),
    "another under a prefix": (
        lambda net: {f"module.{n}": t for n, t in models.build("resnet14", 10, ()).trunk.state_dict().items()},
        r"another network than resnet8: tensors 36 unknown .*under names that begin with 'module.'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_weights_are_refused_by_name(case, trunk, model, tmp_path):
    make, message = UNUSABLE[case]
    torch.save(make(trunk), tmp_path / "file.pth")
    before = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        models.load_pretrained(model, "resnet8", tmp_path / "file.pth")
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_a_convolutional_classifier_stays_new_if_the_classes_differ(tmp_path):
    network = torchvision.models.squeezenet1_1()
    for classes in (1000, 5):
        model = models.build("torchvision:squeezenet1_1", classes, ())
        pretrained = models.load_pretrained(model, "squeezenet1_1", save(network, tmp_path / "own.pth"))
        assert torch.equal(model.trunk.features[0].weight, network.features[0].weight)
        new = ("trunk.classifier.1.weight", "trunk.classifier.1.bias")
        assert pretrained.new == (() if classes == 1000 else new)


def test_modules_that_ask_for_their_version_get_it(tmp_path):
    network = torchvision.models.mnasnet0_5(num_classes=5)
    model = models.BranchedModel(torchvision.models.mnasnet0_5(num_classes=5), {}, {})
    path = save(network, tmp_path / "network.safetensors")
    models.load_pretrained(model, "mnasnet0_5", path)
    assert torch.equal(model.trunk.layers[0].weight, network.layers[0].weight)


def test_auxiliary_classifiers_in_a_file_are_of_parts_switched_off(trunk, model, tmp_path):
    model.trunk.AuxLogits = None  # as torchvision's Inception without them
    torch.save(trunk.state_dict() | {"AuxLogits.fc.weight": torch.zeros(10, 3)}, tmp_path / "file.pth")
    pretrained = models.load_pretrained(model, "resnet8", tmp_path / "file.pth")
    assert [n for n in pretrained.new if n.startswith("trunk.")] == ["trunk.fc.weight", "trunk.fc.bias"]


class Hostile:
    def __reduce__(self):
        return pytest.fail, ("code in the file ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "whole weights file"),
        (b"not weights", "whole weights file"),
        ({"a": Hostile()}, r"contains code \([^,]*[Ff]ail\), which is not executed: save only the state_dict\(\)"),
        ({"a": argparse.Namespace(b=Hostile())}, r"contains code \([^,]*[Ff]ail\), which is not executed"),
        ({"epoch": 3, "state_dict": {}}, "no tensors by name \\(only epoch, state_dict\\): save a network's"),
        ({}, "no tensors by name: save"),
        (torch.zeros(3), "no tensors by name"),
    ],
    ids=["absent", "empty", "text", "code", "code-in-arguments", "checkpoint", "nothing", "tensor"],
)  # fmt: skip
def test_files_without_weights_are_refused(model, tmp_path, content, message):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        models.load_pretrained(model, "resnet8", path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_refused_as_code(model, tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"contains code \(TorchScript\), which is not executed"):
        models.load_pretrained(model, "resnet8", tmp_path / "file.pt")


def test_safetensors_under_another_suffix_are_taken(trunk, model, tmp_path):
    save_file(trunk.state_dict(), tmp_path / "pytorch_model.bin")
    models.load_pretrained(model, "resnet8", tmp_path / "pytorch_model.bin")
    assert torch.equal(model.trunk.conv1.weight, trunk.conv1.weight)


def test_a_broken_safetensors_file_is_refused(model, tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="whole weights file"):
        models.load_pretrained(model, "resnet8", tmp_path / "file.safetensors")


class TestTorchvision:
    @pytest.fixture
    def trunk(self):
        return models.build("resnet18", 1000, ()).trunk

    @pytest.fixture
    def model(self):
        return models.build("resnet18", 7, ())

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        (tmp_path / "checkpoints").mkdir()
        return tmp_path / "checkpoints"

    def test_weights_put_into_the_cache_by_hand_are_taken(self, trunk, model, cache, monkeypatch):
        monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("downloaded"))
        save(trunk, cache / FILE)
        pretrained = models.load_pretrained(model, "resnet18")
        assert torch.equal(model.trunk.conv1.weight, trunk.conv1.weight)
        assert pretrained.source == "ResNet18_Weights.IMAGENET1K_V1"

    def test_weights_are_downloaded_once_with_progress_and_checked(self, trunk, model, cache, monkeypatch):
        calls = []

        def download(url, path, hash_prefix, progress):
            calls.append((hash_prefix, progress))
            torch.save(trunk.state_dict(), path)

        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        for _ in range(2):
            models.load_pretrained(model, "resnet18")
        assert calls == [("f37072fd", True)]
        assert torch.equal(model.trunk.conv1.weight, trunk.conv1.weight)

    @pytest.mark.parametrize("error", [urllib.error.URLError("no route to host"), RuntimeError("invalid hash value")])
    def test_without_a_network_the_error_says_which_file_to_put_where(self, model, cache, monkeypatch, error):
        def download(*args, **kwargs):
            raise error

        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        with pytest.raises(
            ValueError, match=f"could not be downloaded .*: download https.*{FILE} elsewhere.*{cache / FILE}"
        ):
            models.load_pretrained(model, "resnet18")

    def test_a_broken_file_in_the_cache_is_named(self, model, cache):
        (cache / FILE).write_bytes(b"half a download")
        with pytest.raises(ValueError, match=f"{cache / FILE} is not a whole weights file"):
            models.load_pretrained(model, "resnet18")

    def test_unknown_weights_are_refused(self, model):
        with pytest.raises(ValueError, match="unknown weights of resnet18 'IMAGENET1K_V3'.*known: IMAGENET1K_V1"):
            models.load_pretrained(model, "resnet18", weights="IMAGENET1K_V3")
        with pytest.raises(ValueError, match="there are no pre-trained weights for wrn-10-1.*resnet152.*give a file"):
            models.load_pretrained(models.build("wrn-10-1", 5), "wrn-10-1")


def test_the_lists_freeze_the_old_and_train_the_new(trunk, model, tmp_path):
    """The phase that trains new layers alone, with nothing else than the two lists."""
    pretrained = models.load_pretrained(model, "resnet8", save(trunk, tmp_path / "trunk.pth"))
    parameters = dict(model.named_parameters())
    for name in pretrained.loaded:
        parameters[name].requires_grad_(False)
    frozen = {name.rpartition(".")[0] for name in pretrained.loaded}
    for name, module in model.train().named_modules():
        if isinstance(module, nn.BatchNorm2d) and name in frozen:
            module.eval()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert {name for name, parameter in parameters.items() if parameter.grad is not None} == set(pretrained.new)
    buffers = trunk.state_dict()
    for name, buffer in model.trunk.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
