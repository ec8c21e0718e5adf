"""A cascade against its definition, image by image."""

import pytest
import torch

from fastdhm import models


@pytest.mark.parametrize(("first", "last"), [("B2", "B0"), ("B2", "B1"), ("B0", "B1")])
def test_an_image_leaves_where_the_first_branch_is_sure(first, last):
    thresholds = [0.0, 0.12, 0.15, 1.0]
    model = models.build("resnet8", 10).eval()
    image_BCHW = torch.randn(9, 3, 32, 32)
    with torch.no_grad():
        logits = dict(zip(model.branch_names, model(image_BCHW), strict=True))
        cascade = models.Cascade(model, first, last, thresholds).eval()
        found_TBK = cascade(image_BCHW)
        cascade(image_BCHW[:1])  # the count goes on
    left_T = torch.zeros(4)
    for t, threshold in enumerate(thresholds):
        for b in range(9):
            sure = float(logits[first][b].softmax(0).max()) >= threshold
            torch.testing.assert_close(found_TBK[t, b], logits[first if sure else last][b])
            left_T[t] += sure * (2 if b == 0 else 1)
    assert cascade.left_T.tolist() == left_T.tolist()
    assert left_T[0] == 10 and left_T[3] == 0
