"""Classifiers apart from their features: together they are the model, whatever its family.

Legend: M branches, B batch, K classes.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdhm import models
from fastdhm.models.base.headless import Headless

SIZE = (3, 32, 32)


def logits_of(headless, images, active=None):
    weights, bias = headless.heads(active)
    parts = zip(headless(images, active), weights, bias or [None] * len(weights), strict=True)
    return torch.stack([F.linear(x_BD, weight_KD, bias_K) for x_BD, weight_KD, bias_K in parts])


SLOW = [pytest.param(arch, marks=pytest.mark.slow) for arch in ("resnet18", "mobilenet", "torchvision:convnext_tiny")]


@pytest.mark.parametrize("arch", ["resnet8", "wrn-10-1", "densenet-22-4", *SLOW])
def test_features_and_heads_are_the_model(arch):
    model = models.build(arch, 7).eval()
    names, headless, images = list(model.state_dict()), Headless(model, SIZE), torch.randn(2, *SIZE)
    for active in (None, (), model.branch_names[1:2]):
        assert torch.equal(logits_of(headless, images, active), model(images, active))
    assert list(model.state_dict()) == names
    assert torch.equal(model.strip()(images), model(images)[0])


def test_a_single_branch_too():
    model = models.build_alone("resnet8", 7, "B1").eval()
    images = torch.randn(2, *SIZE)
    assert torch.equal(logits_of(Headless(model, SIZE), images), model(images))


def test_the_model_is_whole_after_an_error():
    model = models.build("resnet8", 7)
    headless = Headless(model, SIZE)
    with pytest.raises(RuntimeError):
        headless(torch.randn(2, 5, 8, 8))
    assert model(torch.randn(2, *SIZE)).shape == (3, 2, 7)


def test_a_classifier_that_was_replaced_stays_and_is_the_head():
    model, images = models.build("resnet8", 7).eval(), torch.randn(2, *SIZE)
    headless = Headless(model, SIZE)
    for branch in (model.trunk, *model.branches.values()):
        branch.fc = nn.Linear(branch.fc.in_features, 9)
    assert torch.equal(logits_of(headless, images), model(images)) and model(images).shape[2] == 9
    model.trunk.fc = nn.Identity()
    with pytest.raises(ValueError, match="classifier of branch B0 is now of Identity: must be an nn.Linear"):
        headless.heads()


def test_wrong_input_is_named():
    model = models.build("resnet8", 7)
    with pytest.raises(ValueError, match="unknown branch 'B9'"):
        Headless(model, SIZE).heads(("B9",))
    with pytest.raises(ValueError, match="is no model of fastdhm"):
        Headless(model.strip(), SIZE)
    with pytest.raises(ValueError, match=r"size_CHW is \(32, 32\): must be \(channels, height, width\)"):
        Headless(model, (32, 32))
    headless = Headless(model, SIZE)
    model.trunk.fc.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="the classifier of branch B0 has hooks"):
        headless.heads()


def test_classifiers_without_bias():
    model = models.build("resnet8", 7)
    for branch in model.branches.values():
        branch.fc.bias = None
    images = torch.randn(2, *SIZE)
    model.eval()
    torch.testing.assert_close(logits_of(Headless(model, SIZE), images), model(images))
    model.trunk.fc.bias = None
    headless = Headless(model, SIZE)
    assert headless.heads()[1] is None and torch.equal(logits_of(headless, images), model(images))


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_it_compiles_into_one_graph(backend):
    model, images = models.build("resnet8", 7).eval(), torch.randn(2, *SIZE)
    headless = Headless(model, SIZE)
    compiled = torch.compile(lambda x: logits_of(headless, x), fullgraph=True, backend=backend)
    for _ in range(2):
        torch.testing.assert_close(compiled(images), model(images))
    assert isinstance(model.trunk.fc, nn.Linear)


class Scaled(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda fc: nn.Sequential(fc, nn.LogSoftmax(1)), "its logits are changed after its last layer trunk.fc.0"),
        (lambda fc: Scaled(64, 7), "its last layer trunk.fc is of Scaled"),
        (lambda fc: nn.Sequential(nn.Unflatten(1, (64, 1, 1)), nn.Conv2d(64, 7, 1), nn.Flatten()), "trunk.fc.1"),
    ],
)
def test_other_ends_are_refused_in_words(change, why):
    model = models.build("resnet8", 7)
    model.trunk.fc = change(model.trunk.fc)
    with pytest.raises(ValueError, match=f"branch B0 does not end in an nn.Linear.*{why}"):
        Headless(model, SIZE)
