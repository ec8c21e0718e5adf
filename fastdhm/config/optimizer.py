"""How the weights move: optimizer, learning rate and its schedule, decay and average."""

import math
import re
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
ARGUMENT = r"[A-Za-z_]\w*\s*=[^=]+"
ARGUMENTS = Rule("NAME=VALUE,..., such as eps=1e-6", re.compile(rf"({ARGUMENT}(,\s*{ARGUMENT})*)?").fullmatch)
LAYER_DECAY = Rule("in (0, 1]", lambda x: 0 < x <= 1)
FACTOR = Rule("a finite number, 1 or more", lambda x: 1 <= x < math.inf)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimizer and learning rate."""

    __slots__ = ()

    optimizer: str = "sgd"
    """Optimizer, such as sgd, adamw, muon or timm:NAME.
    torch's: sgd, amsgrad (Adam whose second moments never fall), adamw, muon. muon moves the matrices of hidden layers,
    convolutions as [output channels, the rest]; norms, biases, the first layer and classifiers are moved by adamw.
    timm's: lion, lamb and, as timm:NAME, any other. schedulefree:sgd, schedulefree:adamw and schedulefree:radam are of
    that library: they need no schedule, and what is validated and kept is their average of the weights. One that is not
    the recipe's brings its library's lr and weight_decay, where these are not given."""
    optimizer_args: str = setting("", ARGUMENTS)
    """What else the optimizer takes, as NAME=VALUE,....
    eps=1e-6,betas=0.9,0.95, say. Empty: its library's values."""
    lr: float = setting(0.1, POSITIVE)
    """Highest learning rate."""
    scale_lr: bool = False
    """Scale lr by batch_size / lr_batch_size.
    Goyal et al. (2017). It needs a warm-up, which begins at lr itself."""
    lr_batch_size: int = setting(128, AT_LEAST_ONE)
    """Batch size that lr is right for.
    The recipe gives the one of its own lr."""
    layer_decay: float = setting(1.0, LAYER_DECAY)
    """Factor of lr from each layer of the trunk to the one before it.
    In (0, 1]: 0.75, say, to change pre-trained layers the less the earlier they come. A layer is a block; stem and
    classifier are one each. Side branches have all of lr. 1: all layers alike."""
    schedule: Literal["step", "cosine", "linear", "constant", "warm-restarts"] = "step"
    """Schedule of lr: step, cosine, linear, constant or warm-restarts.
    It follows the warm-up. step multiplies lr by gamma at each milestone. cosine and linear fall to 0. constant stays.
    warm-restarts is cosine again and again, in cycles."""
    cycle_epochs: float = setting(10.0, POSITIVE)
    """Length of the first cycle of warm-restarts, in epochs."""
    cycle_factor: float = setting(1.0, FACTOR)
    """Length of a cycle of warm-restarts over that of the one before."""
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
    """Decay of the two moments of amsgrad and adamw, in [0, 1).
    Also of the adamw beside muon."""
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
