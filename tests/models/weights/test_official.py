"""The released checkpoints: the same images give the same three outputs, and other files are refused."""

import os

import pytest
import torch
from released import ALL, SMALL, released, trained

from fastdhm import models
from fastdhm.models.weights import official


def file_of(arch, folder, wrapped="plain"):
    """The released code's network and a file that holds it."""
    network = trained(arch, 7)
    state = network.state_dict()
    if wrapped == "DataParallel":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    whole = {"epoch": 164, "best_prec1": 72.6, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}
    return network, save(state if wrapped == "plain" else whole, folder / "model_best.pth.tar")


def save(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrapped", ["plain", "checkpoint", "DataParallel"])
@pytest.mark.parametrize("arch", SMALL)
def test_the_same_images_give_the_released_codes_outputs(arch, wrapped, tmp_path):
    network, path = file_of(arch, tmp_path, wrapped)
    model = models.load_official(path, arch, 7).eval()
    assert model.branch_names == ("B0", "B1", "B2")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack(network(x))
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.strip()(x), expected[0], rtol=1e-5, atol=1e-5)
    assert (expected[1:] - expected[0]).abs().min() > 0


def test_imagenet_networks_at_the_released_codes_size(tmp_path):
    network, path = file_of("resnet18", tmp_path)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack(network(x))
        torch.testing.assert_close(models.load_official(path, "resnet18").eval()(x), expected, rtol=1e-4, atol=1e-4)


# resnet1202 takes seconds to build, twice, and is resnet110 with more blocks
DEEP = {"resnet1202": pytest.mark.slow}


@pytest.mark.parametrize("arch", [pytest.param(arch, marks=DEEP.get(arch, ())) for arch in ALL])
def test_every_released_network_is_ours_tensor_by_tensor(arch):
    """The same names and shapes, so the same parameters, in the trunk and in each branch."""
    with torch.device("meta"):
        theirs, ours = released(arch, 10), models.build(arch, 10)
    parts = official.PARTS[models.family_of(arch).name]
    renamed = {official.released_name(name, parts): tensor.shape for name, tensor in ours.state_dict().items()}
    assert len(renamed) == len(ours.state_dict())
    assert renamed == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("branches", [(), ("B2",), ("B1", "B2", "B3")], ids=["baseline", "one", "three"])
def test_the_branches_are_the_files(branches, tmp_path):
    model = models.build("resnet18", 7, branches)
    parts = {"B3": ("layer2", "layer3", "layer4"), "B2": ("layer3", "layer4"), "B1": ("layer4",)}
    state = {official.released_name(name, parts): tensor for name, tensor in model.state_dict().items()}
    assert "B3" not in branches or "layer2_head3.0.conv1.weight" in state
    loaded = models.load_official(save(state, tmp_path / "model.pth"), "resnet18")
    assert loaded.branch_names == ("B0", *branches)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_files_from_before_batches_were_counted(tmp_path):
    state = {n: t for n, t in trained("resnet8", 7).state_dict().items() if "num_batches" not in n}
    assert models.load_official(save(state, tmp_path / "old.pth"), "resnet8").branch_names == ("B0", "B1", "B2")


def without(state, name):
    return {n: tensor for n, tensor in state.items() if n != name}


REFUSED = {
    "another depth": ("resnet14", lambda s: s, "another network than resnet14.*missing.*layer1.1.conv1.weight"),
    "another family": ("wrn-10-1", lambda s: s, "another network than wrn-10-1.*missing.*unknown"),
    "not theirs": ("mobilenet", lambda s: s, "released code has no network 'mobilenet'"),
    "missing": ("resnet8", lambda s: without(s, "layer3_head2.0.conv2.weight"), r"1 missing \(layer3_head2.0.conv2.w"),
    "surplus": ("resnet8", lambda s: {**s, "fc_head2.gain": s["fc.bias"]}, r"1 unknown \(fc_head2.gain\)"),
    "another shape": ("resnet8", lambda s: {**s, "fc_head1.weight": s["fc.weight"]}, "1 of another shape"),
    "no such branch": ("resnet8", lambda s: {**s, "fc_head3.weight": s["fc.weight"]}, "B1, B2, B3, but resnet8"),
    "no classifier": ("resnet8", lambda s: without(s, "fc.weight"), "no fc.weight"),
    "no tensors": ("resnet8", lambda s: {"state_dict": {"epoch": 3}}, "no tensors by name"),
    "a list": ("resnet8", lambda s: list(s.values()), "no tensors by name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused(case, tmp_path):
    arch, change, message = REFUSED[case]
    path = save(change(trained("resnet8", 7).state_dict()), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        models.load_official(path, arch)


def test_another_number_of_classes_is_refused(tmp_path):
    path = save(trained("resnet8", 7).state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="7 classes, not 100"):
        models.load_official(path, "resnet8", 100)


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    state = {**trained("resnet8", 7).state_dict(), "fc.bias": Code(str(tmp_path / "made"))}
    with pytest.raises(ValueError, match="contains code"):
        models.load_official(save(state, tmp_path / "model.pth"), "resnet8")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"], ids=["absent", "empty", "garbage"])
def test_files_that_are_no_checkpoints(content, tmp_path):
    path = tmp_path / "model.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="no such file" if content is None else "whole checkpoint"):
        models.load_official(path, "resnet8")
