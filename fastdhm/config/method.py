"""What the branches learn from: the labels, each other, and a teacher."""

import math
from dataclasses import dataclass
from typing import Literal

from fastdhm.config.images import SIZE
from fastdhm.config.rules import NOT_NEGATIVE, RAMP, SHARE, Rule, setting

TOLERANCE = 1e-6  # how far the sum of probabilities written as decimals may be from 1


def _is_distribution(probabilities: dict[str, float]) -> bool:
    values = probabilities.values()
    return all(0 <= p <= 1 for p in values) and abs(math.fsum(values) - 1) <= TOLERANCE


DISTRIBUTION = Rule("probabilities in [0, 1] that sum to 1", _is_distribution)
TEMPERATURE = Rule("a number from 1e-6 to 1e6", lambda x: 1e-6 <= x <= 1e6)  # as mimic_loss takes it


@dataclass(frozen=True, kw_only=True)
class Method:
    """Method."""

    __slots__ = ()

    method: str = "dhm"
    """What the branches learn from: baseline, dsl or dhm.
    baseline has no branches. In dsl each learns from the labels, in dhm from the labels and from the others."""
    direction: Literal["both", "top-down", "bottom-up"] = "both"
    """Who mimics whom in dhm: both, top-down or bottom-up.
    both: all mimic each other. top-down: only the shallower branch mimics the deeper one. bottom-up: the reverse."""
    sampler: Literal["binary", "bernoulli", "structural"] = "binary"
    """Who takes part: binary, bernoulli or structural.
    It says which side branches take part in dhm. binary: all, always. bernoulli: those that a coin keeps; the others
    learn from the labels alone. structural: a set drawn from a distribution; the others are not computed."""
    sample_every: Literal["epoch", "step"] | None = None
    """How often the sampler draws: epoch or step.
    Null: by the sampler. That is epoch for bernoulli, as in the paper, and step for structural."""
    keep_prob: float = setting(0.5, SHARE)
    """Probability that bernoulli keeps a branch, in [0, 1]."""
    branch_sets: dict[str, float] | None = setting(None, DISTRIBUTION)
    """Probability of each set that structural draws.
    Write {B1+B2: 0.5, B1: 0.25, none: 0.25}, say. Null: all alike. The empty set is one of them."""
    temperature: float = setting(1.0, TEMPERATURE)
    """Temperature of the mimicking terms, a teacher's too."""
    ce_weight: float = setting(1.0, NOT_NEGATIVE)
    """Weight of a side branch's cross-entropy (Eq. 8).
    It is the paper's lambda. The main branch's is 1."""
    mimic_weight: float = setting(1.0, NOT_NEGATIVE)
    """Weight of each mimicking term (Eq. 9).
    It is the paper's mu."""
    mimic_warmup: float = setting(0.0, RAMP)
    """Epochs in which the mimicking weights rise from 0.
    Short runs stall without it; the paper's long runs do not."""
    teacher: str | None = None
    """Learn from a trained network too: a run or a file, say.
    It is a run directory, a checkpoint or network.safetensors of a run, any file of weights (with --teacher-arch),
    torchvision:NAME or timm:NAME with the weights of that library. Every branch that learns from the labels learns from
    its predictions too: with the baseline this is plain distillation. Its classes must be those of the data set.
    Null: no teacher."""
    teacher_weight: float = setting(1.0, NOT_NEGATIVE)
    """Weight of the teacher's terms, one for each branch.
    The cross-entropy has weight 1. The ramp of mimic_warmup leaves them alone: a teacher knows something from the
    first step on."""
    teacher_arch: str | None = None
    """Network of a teacher's file, such as timm:resnet50d.
    A name as of --arch. Null: as the file says, which those of a run do."""
    teacher_size: int | tuple[int, int] | None = setting(None, SIZE)
    """Pixels that the teacher sees: a side, or HEIGHT,WIDTH.
    The images of a step are resized to them. Null: the images as the network sees them."""
