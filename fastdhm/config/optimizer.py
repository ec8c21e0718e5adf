"""How the weights move: optimizer, learning rate and its schedule, decay and average."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fastdhm.config.rules import AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, POSITIVE, RAMP, Rule, setting

BETAS = (0.9, 0.999)


def _rising(epochs: tuple[float, ...]) -> bool:
    return all(a < b for a, b in pairwise((0, *epochs)))


def _decays(betas: tuple[float, float]) -> bool:
    return len(betas) == 2 and all(0 <= beta < 1 for beta in betas)


MILESTONES = Rule("rising epochs above 0", _rising)
TWO_DECAYS = Rule("two numbers in [0, 1)", _decays)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimizer and learning rate."""

    __slots__ = ()

    optimizer: Literal["sgd", "amsgrad"] = "sgd"
    """Optimizer: sgd or amsgrad.
    amsgrad is Adam whose second moments never fall."""
    lr: float = setting(0.1, POSITIVE)
    """Highest learning rate."""
    scale_lr: bool = False
    """Scale lr by batch_size / lr_batch_size.
    Goyal et al. (2017). It needs a warm-up, which begins at lr itself."""
    lr_batch_size: int = setting(128, AT_LEAST_ONE)
    """Batch size that lr is right for.
    The recipe gives the one of its own lr."""
    schedule: Literal["step", "cosine", "linear"] = "step"
    """Schedule of lr: step, cosine or linear.
    It follows the warm-up. step multiplies lr by gamma at each milestone. cosine and linear fall to 0."""
    milestones: tuple[float, ...] = setting((), MILESTONES)
    """Epochs at which lr is multiplied by gamma.
    Of the step schedule."""
    gamma: float = setting(0.1, POSITIVE)
    """Factor of the step schedule."""
    warmup: Literal["linear", "constant"] = "linear"
    """Shape of the warm-up: linear or constant.
    linear rises to lr. constant stays at warmup_lr, and then jumps to lr."""
    warmup_epochs: float = setting(0.0, RAMP)
    """Length of the warm-up, in epochs."""
    warmup_lr: float = setting(0.0, NOT_NEGATIVE)
    """Learning rate at the start of the warm-up."""
    momentum: float = setting(0.9, BELOW_ONE)
    """Momentum of sgd, in [0, 1)."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    betas: tuple[float, float] = setting(BETAS, TWO_DECAYS)
    """Decay of amsgrad's two moments, in [0, 1)."""
    weight_decay: float = setting(1e-4, NOT_NEGATIVE)
    """Weight decay."""
    decay_norm_bias: bool = True
    """Decay norms and biases too."""
    clip_grad: float | None = setting(None, POSITIVE)
    """Largest norm of the whole gradient.
    Null: no clipping."""
    ema: float = setting(0.0, BELOW_ONE)
    """Decay of an average of the weights; 0: no average.
    0.999, say. The average is validated and kept in place of the last weights. Over the first steps t its decay rises
    to this value as (1 + t) / (10 + t)."""
