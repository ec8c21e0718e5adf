"""Compiling by the block."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fastdhm import models
from fastdhm.engine.fast.blocks import (
    allow_compilations,
    compile_blocks,
    forwards,
    goes_by_block,
    is_deep,
    kinds_of_blocks,
)


@pytest.mark.parametrize(
    ("arch", "deep", "kinds"),
    [
        ("resnet20", False, 0),
        ("resnet56", False, 7),
        ("resnet110", False, 7),
        ("resnet152", True, 10),
        ("densenet-bc-190-40", True, 0),
    ],
)
def test_the_kinds_of_blocks_do_not_grow_with_depth(arch, deep, kinds):
    """A small network has few blocks of a kind, a DenseNet no two: they go as a whole."""
    with torch.device("meta"):
        model = models.build(arch, 10)
    assert (is_deep(model), len(kinds_of_blocks(model)), goes_by_block(model)) == (deep, kinds, deep and kinds > 0)


@pytest.mark.parametrize("name", ["recompile_limit", "cache_size_limit"])
def test_the_limit_of_compilations_rises_under_its_old_name_too(monkeypatch, name):
    """torch 2.6 knows it as cache_size_limit alone."""
    config = SimpleNamespace(**{name: 8})
    monkeypatch.setattr(torch._dynamo, "config", config)
    allow_compilations(3)
    assert vars(config) == {name: 11}


def test_blocks_alike_share_their_code_and_compute_as_eager_does(monkeypatch):
    """Traced and decomposed, without code generation; outside of the context the network is what it was."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    eager = models.build("resnet44", 10).double()
    model = copy.deepcopy(eager)
    image_BCHW = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with forwards(compile_blocks(model, variants=1)):
        logits_MBK = model(image_BCHW)
    logits_MBK.square().mean().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == len(kinds_of_blocks(model)) == 7
    expected_MBK = eager(image_BCHW)
    expected_MBK.square().mean().backward()
    torch.testing.assert_close(logits_MBK, expected_MBK, rtol=1e-8, atol=1e-10)
    for mine, other in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(dict(model.named_buffers()), dict(eager.named_buffers()), rtol=1e-8, atol=1e-10)
    assert not any("forward" in vars(module) for module in model.modules())
