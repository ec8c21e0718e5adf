"""All branches as one network: the mean of their probabilities.

Legend: M branches, B batch, K classes.
"""

import math

from torch import Tensor, nn

from fastdhm.errors import unknown
from fastdhm.models.base.alone import alone
from fastdhm.models.base.branched import BranchedModel

ENSEMBLE = "ensemble"


class Ensemble(nn.Module):
    """``log(mean over branches of softmax(logits))``: its softmax is the mean of all branches' probabilities."""

    def __init__(self, model: BranchedModel):
        super().__init__()
        self.model = model

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Logits ``[B, K]``, float32."""
        logits_MBK = self.model(image_BCHW).float()
        return logits_MBK.log_softmax(2).logsumexp(0) - math.log(len(logits_MBK))


def one_network(model: BranchedModel, branch: str, size_CHW: tuple[int, int, int]) -> nn.Module:
    """``model`` as a network of images to logits [B, K]: one branch with the trunk up to its fork, or the ensemble.

    Nothing else is computed. Do not use ``model`` afterwards.

    Raises:
        ValueError: the model does not have the branch; names those that it has.
    """
    if branch == ENSEMBLE:
        return Ensemble(model)
    if branch not in model.branch_names:
        raise unknown("branch", branch, (*model.branch_names, ENSEMBLE))
    return model.strip() if branch == model.main else alone(model, branch, size_CHW).strip()
