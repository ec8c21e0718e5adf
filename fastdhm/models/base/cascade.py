"""Two branches as one network of two speeds: the first answers where it is sure, the last one elsewhere.

Legend: T thresholds, B batch, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdhm.models.base.branched import BranchedModel


class Cascade(nn.Module):
    """``first``'s logits where its largest probability reaches the threshold, else ``last``'s: ``logits_TBK``.

    All thresholds are tried in one pass, which computes both branches for every image. ``left_T`` counts the images
    that left at ``first``.
    """

    threshold_T1: Tensor
    left_T: Tensor

    def __init__(self, model: BranchedModel, first: str, last: str, thresholds: Sequence[float]):
        super().__init__()
        self.model = model
        self.active = tuple(name for name in (first, last) if name != model.main)
        computed = (model.main, *self.active)
        self.rows = [computed.index(first), computed.index(last)]
        self.register_buffer("threshold_T1", torch.tensor(thresholds)[:, None])
        self.register_buffer("left_T", torch.zeros(len(thresholds), dtype=torch.float64))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        first_BK, last_BK = self.model(image_BCHW, self.active)[self.rows].float()
        sure_TB = first_BK.softmax(1).amax(1) >= self.threshold_T1
        self.left_T += sure_TB.sum(1)
        return torch.where(sure_TB[:, :, None], first_BK, last_BK)
