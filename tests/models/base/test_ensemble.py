"""A branched model as one network."""

import pytest
import torch

from fastdhm import models
from fastdhm.models import one_network


@pytest.mark.parametrize("branch", ["B0", "B1", "B2", "ensemble"])
def test_one_network_has_the_models_logits(branch):
    model = models.build("resnet8", 10).eval()
    image_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits_MBK = model(image_BCHW)
        found = one_network(model, branch, (3, 32, 32)).eval()(image_BCHW)
    if branch == "ensemble":
        torch.testing.assert_close(found.softmax(1), logits_MBK.softmax(2).mean(0))
    else:
        torch.testing.assert_close(found, logits_MBK[int(branch[1])])


def test_an_unknown_branch_is_refused():
    with pytest.raises(ValueError, match="B9"):
        one_network(models.build("resnet8", 10), "B9", (3, 32, 32))


def test_a_branch_that_was_trained_alone_is_not_taken_for_the_trunk():
    with pytest.raises(ValueError, match="B0"):
        one_network(models.build_alone("resnet8", 10, "B1"), "B0", (3, 32, 32))
