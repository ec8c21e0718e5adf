"""The released checkpoints: the same images give the same three outputs, and other files are refused."""

import os

import pytest
import torch
import torch.nn.functional as F

from fastdhm import models
from fastdhm.models import official

# arch: what the released code calls the modules of B2 and B1
HEADS = {
    "resnet8": ({"layer2_head2", "layer3_head2", "fc_head2"}, {"layer3_head1", "fc_head1"}),
    "resnet18": ({"layer3_head2", "layer4_head2", "fc_head2"}, {"layer4_head1", "fc_head1"}),
    "wrn-10-1": ({"layer2_head2", "layer3_head2", "bn_head2", "fc_head2"}, {"layer3_head1", "bn_head1", "fc_head1"}),
    "densenet-10-4": (
        {"layer2_head2", "transition2_head2", "layer3_head2", "bn_head2", "fc_head2"},
        {"layer3_head1", "bn_head1", "fc_head1"},
    ),
}  # fmt: skip
HEADS["densenet-bc-16-4"] = HEADS["densenet-10-4"]
PARTS = {  # ours -> theirs, stated once more
    "resnet8": ("layer2", "layer3"),
    "resnet18": ("layer3", "layer4"),
    "wrn-10-1": ("layer2", "layer3", "bn"),
    "densenet-10-4": ("layer2", "transition2", "layer3", "bn"),
    "densenet-bc-16-4": ("layer2", "transition2", "layer3", "bn"),
}


def model_of(arch, branches=None):
    """With statistics and biases that are not those of a fresh network."""
    torch.manual_seed(0)
    model = models.build(arch, 7, branches)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5) if "var" in name or "weight" in name else tensor.normal_(0, 0.2)
    return model.eval()


def released(model, arch):
    """The state dict that the released code would have saved."""
    shared = {"B2": PARTS[arch], "B1": tuple(part for part in PARTS[arch] if part not in ("layer2", "transition2"))}
    if arch == "resnet18":
        shared["B1"] = ("layer4",)
    state = {}
    for name, tensor in model.state_dict().items():
        kind, *rest = name.split(".")
        if kind == "trunk":
            state[".".join(rest)] = tensor
        elif rest[1] == "fc":
            state[f"fc_head{rest[0][1]}.{rest[2]}"] = tensor
        else:
            state[".".join([f"{shared[rest[0]][int(rest[2])]}_head{rest[0][1]}", *rest[3:]])] = tensor
    return state


def save(content, path):
    torch.save(content, path)
    return path


class Released:
    """The released ResNets' forward in evaluation, straight from a state dict."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, stride=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def bn(self, name, x):
        mean, var, weight, bias = (
            self.state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    def shortcut(self, name, x, stride, channels):
        if f"{name}.downsample.0.weight" in self.state:
            return self.bn(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, stride))
        x = F.avg_pool2d(x, stride) if stride > 1 else x
        zeros = x.new_zeros(len(x), channels - x.shape[1], *x.shape[2:])
        return torch.cat((x, zeros), 1)

    def layer(self, name, x, stride=2):
        block = 0
        while f"{name}.{block}.conv1.weight" in self.state:
            base, step = f"{name}.{block}", stride if block == 0 else 1
            out = F.relu(self.bn(f"{base}.bn1", self.conv(f"{base}.conv1", x, step)))
            out = self.bn(f"{base}.bn2", self.conv(f"{base}.conv2", out))
            x = F.relu(out + self.shortcut(base, x, step, out.shape[1]))
            block += 1
        return x

    def fc(self, name, x):
        return F.linear(x.mean((2, 3)), self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def cifar(self, x):
        x = F.relu(self.bn("bn1", self.conv("conv1", x)))
        fork2 = self.layer("layer1", x, 1)
        fork1 = self.layer("layer2", fork2)
        b0 = self.fc("fc", self.layer("layer3", fork1))
        b1 = self.fc("fc_head1", self.layer("layer3_head1", fork1))
        return b0, b1, self.fc("fc_head2", self.layer("layer3_head2", self.layer("layer2_head2", fork2)))

    def imagenet(self, x):
        x = F.max_pool2d(F.relu(self.bn("bn1", self.conv("conv1", x, 2))), 3, 2, 1)
        fork2 = self.layer("layer2", self.layer("layer1", x, 1))
        fork1 = self.layer("layer3", fork2)
        b0 = self.fc("fc", self.layer("layer4", fork1))
        b1 = self.fc("fc_head1", self.layer("layer4_head1", fork1))
        return b0, b1, self.fc("fc_head2", self.layer("layer4_head2", self.layer("layer3_head2", fork2)))


@pytest.mark.parametrize(("arch", "forward", "side"), [("resnet8", "cifar", 32), ("resnet18", "imagenet", 64)])
def test_the_same_images_give_the_released_codes_outputs(arch, forward, side, tmp_path):
    state = released(model_of(arch), arch)
    model = models.load_official(save(state, tmp_path / "model.pth.tar"), arch).eval()
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack(getattr(Released(state), forward)(x))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected[0], expected[1])


@pytest.mark.parametrize("arch", HEADS)
@pytest.mark.parametrize("wrapped", ["plain", "checkpoint", "DataParallel"])
def test_every_family_loads_in_every_wrapping(arch, wrapped, tmp_path):
    source = model_of(arch)
    state = released(source, arch)
    heads = {name.split(".")[0] for name in state if "_head" in name}
    assert heads == HEADS[arch][0] | HEADS[arch][1]
    if wrapped == "DataParallel":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    content = state if wrapped == "plain" else {"epoch": 164, "best_acc": 72.6, "state_dict": state, "optimizer": {}}
    model = models.load_official(save(content, tmp_path / "model.pth.tar"), arch, 7)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.branch_names == ("B0", "B1", "B2")


@pytest.mark.parametrize("arch", ["resnet1202", "wrn-28-10", "densenet-bc-190-40", "resnet152", "resnet34"])
def test_every_parameter_of_the_large_ones_has_a_name_of_its_own(arch):
    with torch.device("meta"):
        names = list(models.build(arch, 10).state_dict())
    theirs = {official.released_name(name, official.PARTS[models.family_of(arch).name]) for name in names}
    assert len(theirs) == len(names)
    assert not any(name.startswith(("trunk", "branches")) for name in theirs)


@pytest.mark.parametrize("branches", [(), ("B2",), ("B1", "B2", "B3")], ids=["baseline", "one", "three"])
def test_the_branches_are_the_files(branches, tmp_path):
    model = model_of("resnet18", branches)
    parts = {"B3": ("layer2", "layer3", "layer4"), "B2": ("layer3", "layer4"), "B1": ("layer4",)}
    state = {official.released_name(name, parts): tensor for name, tensor in model.state_dict().items()}
    assert "B3" not in branches or "layer2_head3.0.conv1.weight" in state
    loaded = models.load_official(save(state, tmp_path / "model.pth"), "resnet18")
    assert loaded.branch_names == ("B0", *branches)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_files_from_before_batches_were_counted(tmp_path):
    state = {n: t for n, t in released(model_of("resnet8"), "resnet8").items() if "num_batches" not in n}
    assert models.load_official(save(state, tmp_path / "old.pth"), "resnet8").branch_names == ("B0", "B1", "B2")


def without(state, name):
    return {n: tensor for n, tensor in state.items() if n != name}


REFUSED = {
    "another depth": ("resnet14", lambda s: s, "another network than resnet14.*missing.*layer1.1.conv1.weight"),
    "another family": ("wrn-10-1", lambda s: s, "another network than wrn-10-1.*missing.*unknown"),
    "not theirs": ("mobilenet", lambda s: s, "released code has no 'mobilenet'"),
    "missing": ("resnet8", lambda s: without(s, "layer3_head2.0.conv2.weight"), r"1 missing \(layer3_head2.0.conv2.w"),
    "surplus": ("resnet8", lambda s: {**s, "fc_head2.gain": s["fc.bias"]}, r"1 unknown \(fc_head2.gain\)"),
    "another shape": ("resnet8", lambda s: {**s, "fc_head1.weight": s["fc.weight"]}, "1 of another shape"),
    "no such branch": ("resnet8", lambda s: {**s, "fc_head3.weight": s["fc.weight"]}, "B1, B2, B3, and resnet8"),
    "no classifier": ("resnet8", lambda s: without(s, "fc.weight"), "no fc.weight"),
    "no tensors": ("resnet8", lambda s: {"state_dict": {"epoch": 3}}, "no tensors by name"),
    "a list": ("resnet8", lambda s: list(s.values()), "no tensors by name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused(case, tmp_path):
    arch, change, message = REFUSED[case]
    path = save(change(released(model_of("resnet8"), "resnet8")), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        models.load_official(path, arch)


def test_another_number_of_classes_is_refused(tmp_path):
    path = save(released(model_of("resnet8"), "resnet8"), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="7 classes, not 100"):
        models.load_official(path, "resnet8", 100)


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    state = {**released(model_of("resnet8"), "resnet8"), "fc.bias": Code(str(tmp_path / "made"))}
    with pytest.raises(ValueError, match="holds code"):
        models.load_official(save(state, tmp_path / "model.pth"), "resnet8")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"], ids=["absent", "empty", "garbage"])
def test_files_that_are_no_checkpoints(content, tmp_path):
    path = tmp_path / "model.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="no such file" if content is None else "no whole checkpoint"):
        models.load_official(path, "resnet8")
