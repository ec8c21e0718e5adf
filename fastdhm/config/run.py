"""A training run: the values of all topics together, and the rules that hold between them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from fastdhm.config.data import Data
from fastdhm.config.images import Images
from fastdhm.config.labels import Labels
from fastdhm.config.machine import Machine
from fastdhm.config.method import Method
from fastdhm.config.model import Model
from fastdhm.config.optimizer import BETAS, Optimizer
from fastdhm.config.output import Output
from fastdhm.config.rules import Rule, check
from fastdhm.config.steps import Steps

TOPICS = (Data, Model, Method, Labels, Images, Steps, Optimizer, Machine, Output)
MAX_LR = 3.4e38  # the weights are float32


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Output, Machine, Optimizer, Steps, Images, Labels, Method, Model, Data):
    """A training run.

    The bases stand from last to first: a dataclass begins with the fields of its last base. Their slots are empty
    because Python joins several bases with slots only if all but one are.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if "rule" in field.metadata:
                check(field.name, getattr(self, field.name), field.metadata["rule"], of=getattr(self, field.name))
        for name, holds, words in TOGETHER:
            check(name, getattr(self, name), Rule(words, holds), of=self)

    @property
    def peak_lr(self) -> float:
        """``lr``, scaled to the batch where ``scale_lr`` says so."""
        return self.lr * self.batch_size / self.lr_batch_size if self.scale_lr else self.lr


# What takes all logits of a step at once: whether a run has it, as a rule calls it, as a plan says it.
ALL_LOGITS: tuple[tuple[Callable[[TrainConfig], object], str, str], ...] = (
    (lambda run: run.teacher, "a teacher, who gives logits", "a teacher gives logits"),
    (lambda run: run.impl == "eager", "impl eager", "impl is eager"),
    (lambda run: run.grad_cosine > 0, "grad_cosine, which takes all logits", "grad_cosine takes all logits"),
    (lambda run: run.ce_weight == 0, "ce_weight 0: the error in training is not known then", "ce_weight is 0"),
)

# The rules over several fields: which field the error names, whether it holds, and what the field must be.
TOGETHER: tuple[tuple[str, Callable[[TrainConfig], object], str], ...] = (
    ("corrupt_seed", lambda run: not run.corrupt_seed or run.corrupt_labels, "left out: corrupt_labels is 0"),
    (
        "mix_off_epochs",
        lambda run: not run.mix_off_epochs or run.mixup or run.cutmix,
        "0 without mixup and cutmix",
    ),
    (
        "mix_off_epochs",
        lambda run: not run.mix_off_epochs or run.mix_off_epochs < run.epochs,
        "below epochs ({run.epochs})",
    ),
    (
        "balanced_sampling",
        lambda run: not run.balanced_sampling or run.class_weights != "auto",
        "false with class_weights auto: both would make a rare class count twice",
    ),
    (
        "balanced_sampling",
        lambda run: not run.balanced_sampling or not run.corrupt_labels,
        "false with corrupt_labels: what is learnt are not the classes of the images",
    ),
    (
        "balanced_sampling",
        lambda run: not run.balanced_sampling or run.repeats == 1,
        "false with repeats ({run.repeats}): it repeats images itself",
    ),
    (
        "only_branch",
        lambda run: run.method == "baseline",
        "left out with {run.method}: only the baseline trains one branch alone",
    ),
    (
        "only_branch",
        lambda run: run.only_branch == "B0" or run.weights is None,
        "B0 or left out: the weights ({run.weights}) are of a whole trunk",
    ),
    (
        "freeze_epochs",
        lambda run: not run.freeze_epochs or run.freeze_epochs < run.epochs,
        "below epochs ({run.epochs})",
    ),
    (
        "freeze_epochs",
        lambda run: not run.freeze_epochs or run.weights is not None,
        "0 without weights: nothing is pre-trained",
    ),
    ("sample_every", lambda run: run.sampler != "binary", "null: the binary sampler does not draw"),
    (
        "keep_prob",
        lambda run: run.keep_prob == 0.5 or run.sampler == "bernoulli",
        "left out: only bernoulli uses it",
    ),
    ("branch_sets", lambda run: run.sampler == "structural", "left out: only structural uses it"),
    (
        "grad_cosine",
        lambda run: not run.grad_cosine or (run.method != "baseline" and run.branches != ()),
        "0: without side branches there are no two gradients",
    ),
    ("repeats", lambda run: run.repeats <= run.batch_size, "at most batch_size ({run.batch_size})"),
    ("accumulate", lambda run: run.batch_size % run.accumulate == 0, "a divisor of batch_size ({run.batch_size})"),
    (
        "scale_lr",
        lambda run: not run.scale_lr or run.batch_size <= run.lr_batch_size or run.warmup_epochs,
        "with warmup_epochs, such as 5: a larger lr needs a warm-up",
    ),
    (
        "lr",
        lambda run: run.scale_lr or run.lr < MAX_LR,
        f"below {MAX_LR:g}, float32's largest number: set a smaller one",
    ),
    (
        "lr",
        lambda run: run.peak_lr < MAX_LR,
        f"below {MAX_LR:g}, float32's largest number, after scale_lr ({{run.batch_size}} / {{run.lr_batch_size}} of it)"
        ": set a smaller one",
    ),
    ("nesterov", lambda run: not run.nesterov or run.momentum > 0, "false when momentum is 0"),
    ("nesterov", lambda run: not run.nesterov or run.optimizer == "sgd", "false: only sgd has it"),
    (
        "betas",
        lambda run: tuple(run.betas) == BETAS or run.optimizer in ("amsgrad", "adamw", "muon"),
        "left out: only amsgrad, adamw and muon use it; for others see --optimizer-args",
    ),
    ("optimizer_args", lambda run: not run.optimizer_args or run.optimizer != "sgd", "left out: sgd's have flags"),
    *(
        ("loss", lambda run, takes=takes: run.loss != "linear" or not takes(run), f"logits or auto with {what}")
        for takes, what, _ in ALL_LOGITS
    ),
    ("teacher_weight", lambda run: run.teacher or run.teacher_weight == 1, "left out: there is no teacher"),
    ("teacher_arch", lambda run: run.teacher, "left out: there is no teacher"),
    ("teacher_size", lambda run: run.teacher, "left out: there is no teacher"),
    ("cuda_graphs", lambda run: not (run.cuda_graphs and run.ema), "false with ema: its decay changes at each step"),
    (
        "cuda_graphs",
        lambda run: not run.cuda_graphs or run.optimizer in ("sgd", "amsgrad", "adamw"),
        "false with {run.optimizer}: its steps count on the host",
    ),
    (
        "schedule",
        lambda run: run.schedule == "constant" or not run.optimizer.startswith("schedulefree:"),
        "constant with {run.optimizer}, which needs no schedule",
    ),
    (
        "cycle_epochs",
        lambda run: run.cycle_epochs == 10 or run.schedule == "warm-restarts",
        "left out: only the schedule warm-restarts uses it",
    ),
    (
        "cycle_factor",
        lambda run: run.cycle_factor == 1 or run.schedule == "warm-restarts",
        "left out: only the schedule warm-restarts uses it",
    ),
    (
        "ema",
        lambda run: not run.ema or not run.optimizer.startswith("schedulefree:"),
        "0 with {run.optimizer}: it averages the weights itself",
    ),
)
