"""What a run is: one frozen dataclass, every value of which can be set by flag or in a YAML file.

The defaults here are neutral; a data set's and architecture's own values come from ``fastdhm.recipes``.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal


def _is_distribution(probabilities: dict[str, float]) -> bool:
    values = probabilities.values()
    return all(0 <= p <= 1 for p in values) and abs(math.fsum(values) - 1) <= 1e-6


MAX_SIDE = 8192  # pixels; a batch of larger images fits into no memory
MAX_STORED_SIDE = 65535  # pixels; what JPEG and .beton files can say
MAX_RAMP = 1e6  # epochs; one longer than the run is only its beginning, but this is no ramp any more
MAX_LR = 3.4e38  # the weights are float32


def _is_image_size(size: int | tuple[int, int]) -> bool:
    sides = (size, size) if isinstance(size, int) else size
    return len(sides) == 2 and all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A training run."""

    dataset: str = "fashion-mnist"
    """Images to learn from: fashion-mnist, cifar10, cifar100, imagenet, folder:PATH (PATH/train and PATH/val, a folder
    per class) or synthetic; to tell people apart: market1501, dukemtmc (withdrawn by its makers: never downloaded, a
    copy that you hold and may use is read from the data folder), reid-folder:PATH (laid out as Market-1501) or
    reid-synthetic."""
    arch: str = "resnet20"
    """Network: resnet18, 34, 50, 101, 152 or mobilenet; for images of about 32 pixels resnet8, 14, 20, 32 and every
    sixth on, densenet-DEPTH-GROWTH, densenet-bc-DEPTH-GROWTH or wrn-DEPTH-WIDTH."""
    method: str = "dhm"
    """What the branches learn from: baseline (no branches), dsl (the labels), dhm (the labels and each other)."""
    preset: Literal["paper", "fast"] = "paper"
    """What the values are that nothing else sets: the paper's recipe, or a fast one for a given error in less time: one
    short cycle of the learning rate, larger batches with lr scaled to them, small images first, no decay of norms and
    biases, and side branches that take part in some steps only. Measured on fashion-mnist alone."""
    dropout: float = 0.0
    """Share of activations that a wide residual network (wrn-D-K) drops between its convolutions, in [0, 1)."""
    weights: str | None = None
    """Weights the trunk starts from: imagenet (torchvision's) or a file of them; null: random."""
    freeze_epochs: int = 0
    """Epochs at the start that train only what is new beside these weights: branches and classifier."""
    branches: tuple[str, ...] | None = None
    """Side branches to grow, such as B1,B2,B3; null: the paper's, B1 and B2. The baseline has none."""
    only_branch: str | None = None
    """Train this branch alone, by the baseline: the trunk up to its fork and the branch are the whole network. B0 is
    the trunk itself; null: the method decides."""
    direction: Literal["both", "top-down", "bottom-up"] = "both"
    """Who mimics whom in dhm: all each other, or only the shallower branch the deeper (top-down), or the reverse."""

    sampler: Literal["binary", "bernoulli", "structural"] = "binary"
    """Which side branches take part in dhm: all, always (binary); those that a coin keeps, the others learning from the
    labels alone (bernoulli); or a set drawn from a distribution, the others not being computed (structural)."""
    sample_every: Literal["epoch", "step"] | None = None
    """How often the sampler draws; null: every epoch for bernoulli, as in the paper, every step for structural."""
    keep_prob: float = 0.5
    """Probability with which bernoulli keeps a branch, in [0, 1]."""
    branch_sets: dict[str, float] | None = None
    """Distribution that structural draws from, such as {B1+B2: 0.5, B1: 0.25, none: 0.25}; null: every set of side
    branches, the empty one too, is equally likely."""

    corrupt_labels: float = 0.0
    """Share of the training labels to corrupt, in [0, 1]: each is with this probability replaced by a class drawn
    uniformly from all, so that one in as many as there are classes stays right. The same labels for the whole run;
    those of validation stay true."""
    corrupt_seed: int = 0
    """Seed of which labels are corrupt, and into what."""

    run_dir: str | None = None
    """Folder for everything the run writes; null: a new one under runs/."""
    data_dir: str | None = None
    """Folder of the data sets and of what is built from them; null: $FASTDHM_DATA, or ~/.cache/fastdhm."""
    seed: int = 0
    """Seed of the weights, the order of the images and their augmentation."""

    loader: Literal["auto", "resident", "ffcv", "torch"] = "auto"
    """Who feeds the images: resident (holds all on the device; for images that need no resizing), ffcv or torch; auto:
    resident up to 2 GiB and a quarter of the memory, else ffcv where it is installed, else torch."""
    workers: int | None = None
    """Loader threads (ffcv) or processes (torch), 0 or more; null: one per processor beside a GPU, fewer on a CPU."""
    store: Literal["raw", "jpg", "smart"] | None = None
    """How .beton files keep images: plain pixels (raw: fastest), JPEG (jpg: a tenth of the size) or smart, plain pixels
    up to 96 x 96 and JPEG above; null: smart for imagenet and folders, else raw."""
    store_size: int | None = None
    """Longer side in pixels to which .beton files shrink larger images; 0: none; null: 500 for imagenet and folders,
    512 for re-identification, else none."""
    store_quality: int | None = None
    """JPEG quality in .beton files, 1 to 100; null: 90."""
    grey_range: tuple[float, float] | None = None
    """Values that become black and white in greyscale images of more than 8 bits, such as 0,4095 for 12 bits saved in
    16; null: by type, 0 and 65535 of 16 bits, 0 and 1 of floats; 32-bit and signed integers have to be given theirs."""
    skip_bad: bool = False
    """Leave unreadable images out when a data set is built, instead of stopping."""
    hold_out: bool = False
    """Keep the validation images of a re-identification set out of training, to compare settings by. Published results
    train on all."""
    subset: int | None = None
    """Train on this many of the training images, as many of each class as there are; which ones is fixed, whatever the
    seed. null: all."""
    image_size: int | tuple[int, int] = 32
    """What the network sees, in pixels: a number for squares, or [HEIGHT,WIDTH]."""
    crop: Literal["pad", "scale", "shift", "center", "enlarge", "whole"] = "pad"
    """Training crop: pad (pad the image, crop anywhere), scale (random area and aspect), shift (no scale: resize, crop
    anywhere) or center (none); or, whatever the image's aspect, whole (all of it) or enlarge (half of the time that,
    else resized to 1.125 of the size and cropped anywhere)."""
    pad: int = 4
    """Zero pixels added on each side for the pad crop."""
    crop_ratio: float = 1.0
    """Side of the validation crop over the image's short side; 0.875 is resize 256, crop 224."""
    flip: bool = True
    """Mirror every other training image at random."""
    progressive: float = 0.0
    """Share of the run, from its start, at lower resolution, in [0, 1]: half the sides first, then three quarters."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each colour channel, in [0, 1], subtracted from the images."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of each colour channel, in [0, 1], by which the images are divided."""

    epochs: int = 100
    """Passes over the training images."""
    max_steps: int | None = None
    """End the run, in order, after this many optimizer steps."""
    batch_size: int = 128
    """Images per optimizer step."""
    accumulate: int = 1
    """Parts a batch is cut into, computed one after the other, to save memory; the batch stays the same size. Batch
    norm takes each part's own statistics and moves the running ones once a part."""
    activation_checkpointing: bool = False
    """Drop most activations and compute them again in the backward pass, to the same bits: a third more computing, for
    networks so deep that their activations do not fit."""
    eval_batch_size: int = 256
    """Images per validation step."""

    lr: float = 0.1
    """Peak learning rate."""
    scale_lr: bool = False
    """Scale lr by batch_size / lr_batch_size (Goyal et al., 2017), after a warm-up that begins at lr itself."""
    lr_batch_size: int = 128
    """Images per step for which lr is right; the recipe says it for its own lr."""
    optimizer: Literal["sgd", "amsgrad"] = "sgd"
    """sgd, or amsgrad: Adam whose second moments never fall."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of amsgrad's two moments, in [0, 1)."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    weight_decay: float = 1e-4
    """Weight decay."""
    decay_norm_bias: bool = True
    """Decay normalisation weights and biases too."""
    ema: float = 0.0
    """Decay, in [0, 1), of a moving average of the weights, 0.999 say, that is validated and kept in place of the last
    weights; 0: none. Over the first steps t it rises to that as (1 + t) / (10 + t)."""
    clip_grad: float | None = None
    """Largest norm of the whole gradient; null: no clipping."""
    schedule: Literal["step", "cosine", "linear"] = "step"
    """Shape of the learning rate after the warm-up: step (times gamma at each milestone), cosine or linear to 0."""
    milestones: tuple[float, ...] = ()
    """Epochs at which the step schedule multiplies the learning rate by gamma."""
    gamma: float = 0.1
    """Factor of the step schedule."""
    warmup_epochs: float = 0.0
    """Length of the learning-rate warm-up, in epochs."""
    warmup_lr: float = 0.0
    """Learning rate at the start of the warm-up."""
    warmup: Literal["linear", "constant"] = "linear"
    """Shape of the warm-up: linear up to lr, or constant at warmup_lr and then lr."""

    temperature: float = 1.0
    """Temperature of the mimicking terms."""
    ce_weight: float = 1.0
    """Weight of each side branch's cross-entropy, beside the main branch's 1 (lambda of Eq. 8)."""
    mimic_weight: float = 1.0
    """Weight of each mimicking term (mu of Eq. 9)."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropies, in [0, 1)."""
    mimic_warmup: float = 0.0
    """Epochs over which the mimicking weights rise from 0; short runs stall without it, the paper's long do not."""

    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: cuda where there is one."""
    impl: Literal["auto", "eager", "cpp", "triton"] = "auto"
    """How the loss, and on a CPU the norms with their activations, are computed: plain torch (eager), C++ on a CPU
    (cpp), a kernel on a GPU (triton); auto: the fastest that is there."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type; auto: bfloat16 where the device computes in it, else float16 on CUDA, else float32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the step, beside the run, which takes it up when it is ready; auto: on a GPU, where the run is
    long enough to repay it."""
    cuda_graphs: bool = False
    """Capture the step in a CUDA graph and replay it, so that a GPU does not wait for Python; not yet run on one."""
    deterministic: bool = False
    """Two runs of this config on one machine agree in every bit: only algorithms that sum in a fixed order, and a step
    that is compiled, if at all, before the first of them."""

    eval_every: int = 1
    """Epochs between validations; the last epoch always has one."""
    keep: Literal["last", "best"] = "last"
    """Whose weights the stripped network gets: the last epoch's, or those with the lowest validation error of B0
    (or of the branch that is trained alone)."""
    log_every: int = 50
    """Steps between log points, the only times the host waits for the device."""
    grad_cosine: int = 0
    """Steps between measurements of how far the branches' gradients agree at the forks (cosines, Eq. 11), which cost a
    forward pass and a part of a backward pass for each branch; 0: none."""
    save_minutes: float = 5.0
    """Minutes between checkpoints inside an epoch; every epoch ends with one."""

    def __post_init__(self) -> None:
        at_least_one = (
            "epochs max_steps subset batch_size lr_batch_size accumulate eval_batch_size eval_every log_every"
        )
        for name in at_least_one.split():
            self._check(name, "1 or more", lambda value: value >= 1)
        for name in ("lr", "temperature", "gamma", "clip_grad", "crop_ratio", "save_minutes"):
            self._check(name, "a finite number above 0", lambda value: 0 < value < math.inf)
        for name in ("weight_decay", "warmup_lr", "ce_weight", "mimic_weight"):
            self._check(name, "a finite number, 0 or more", lambda value: 0 <= value < math.inf)
        for name in ("warmup_epochs", "mimic_warmup"):
            self._check(name, f"0 to {MAX_RAMP:,.0f} epochs", lambda value: 0 <= value <= MAX_RAMP)
        self._check("image_size", f"1 to {MAX_SIDE}, or two of those as [HEIGHT,WIDTH]", _is_image_size)
        self._check("store_quality", "1 to 100", lambda value: 1 <= value <= 100)
        rising = "two finite numbers, the second above the first"
        self._check("grey_range", rising, lambda value: len(value) == 2 and -math.inf < value[0] < value[1] < math.inf)
        for name in ("workers", "pad", "freeze_epochs", "grad_cosine"):
            self._check(name, "0 or more", lambda value: value >= 0)
        stored = f"1 to {MAX_STORED_SIDE} pixels, or 0 to store images as large as they are"
        self._check("store_size", stored, lambda value: 0 <= value <= MAX_STORED_SIDE)
        for name in ("seed", "corrupt_seed"):
            self._check(name, "in [0, 2**63)", lambda value: 0 <= value < 2**63)
        for name in ("momentum", "dropout", "ema"):
            self._check(name, "in [0, 1)", lambda value: 0 <= value < 1)
        self._check("betas", "two numbers in [0, 1)", lambda b: len(b) == 2 and all(0 <= v < 1 for v in b))
        self._check("label_smoothing", "in [0, 1)", lambda value: 0 <= value < 1)
        for name in ("progressive", "keep_prob", "corrupt_labels"):
            self._check(name, "in [0, 1]", lambda value: 0 <= value <= 1)
        self._check("crop_ratio", "at most 1", lambda value: value <= 1)
        self._check("mean", "three numbers in [0, 1]", lambda value: all(0 <= v <= 1 for v in value))
        self._check("std", "three numbers in (0, 1]", lambda value: all(0 < v <= 1 for v in value))
        self._check("milestones", "rising epochs above 0", lambda value: all(a < b for a, b in pairwise((0, *value))))
        self._check("accumulate", f"a divisor of batch_size ({self.batch_size})", lambda n: self.batch_size % n == 0)
        self._check("branch_sets", "probabilities in [0, 1] that sum to 1", _is_distribution)
        sharp = self.batch_size > self.lr_batch_size and not self.warmup_epochs
        self._check(
            "scale_lr", "with warmup_epochs, 5 say: a larger lr has to be risen to", lambda s: not (s and sharp)
        )
        how = f" after scale_lr ({self.batch_size} / {self.lr_batch_size} of it)" * self.scale_lr
        self._check(
            "lr", f"below {MAX_LR:g}, float32's largest number{how}: set a smaller one", lambda _: self.peak_lr < MAX_LR
        )
        sampler = self.sampler
        self._check("sample_every", "null: the binary sampler does not draw", lambda _: sampler != "binary")
        self._check("keep_prob", "left out: only bernoulli uses it", lambda p: p == 0.5 or sampler == "bernoulli")
        self._check("branch_sets", "left out: only structural uses it", lambda _: sampler == "structural")
        true_labels = self.corrupt_labels == 0
        self._check("corrupt_seed", "left out: corrupt_labels is 0", lambda seed: seed == 0 or not true_labels)
        baseline, fresh = self.method == "baseline", self.weights is None
        self._check(
            "only_branch", f"left out with {self.method}: only baseline trains a single one", lambda _: baseline
        )
        whole = f"B0 or left out: the weights ({self.weights}) are of a whole trunk"
        self._check("only_branch", whole, lambda name: name == "B0" or fresh)
        several = not baseline and self.branches != ()
        self._check("grad_cosine", "0: without side branches there are no two gradients", lambda n: n == 0 or several)
        self._check("nesterov", "false when momentum is 0", lambda value: not value or self.momentum > 0)
        self._check("nesterov", "false: only sgd has it", lambda value: not value or self.optimizer == "sgd")
        unused = self.optimizer != "amsgrad"
        self._check(
            "cuda_graphs", "false with ema: its decay changes from step to step", lambda on: not (on and self.ema)
        )
        self._check("betas", "left out: only amsgrad uses it", lambda b: not unused or tuple(b) == (0.9, 0.999))
        self._check("freeze_epochs", f"below epochs ({self.epochs})", lambda n: n == 0 or n < self.epochs)
        self._check("freeze_epochs", "0 without weights: nothing is pre-trained", lambda n: n == 0 or not fresh)

    @property
    def peak_lr(self) -> float:
        """``lr``, scaled to the batch where ``scale_lr`` says so."""
        return self.lr * self.batch_size / self.lr_batch_size if self.scale_lr else self.lr

    def _check(self, name: str, rule: str, holds) -> None:
        value = getattr(self, name)
        try:
            fine = value is None or holds(value)
        except (TypeError, AttributeError, OverflowError):  # read from a file that was edited by hand
            fine = False
        if not fine:
            raise ValueError(f"{name} is {value}: must be {rule}")
