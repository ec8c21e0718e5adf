"""What becomes of the labels: smoothed, mixed with the images, weighed and drawn by class."""

from dataclasses import dataclass

from fastdhm.config.rules import AT_LEAST_ZERO, BELOW_ONE, Rule, setting

ALPHA = Rule("0, which is off, or a number from 0.01 to 100", lambda x: x == 0 or 0.01 <= x <= 100)
WEIGHTS = Rule(
    "auto, a .yaml file or a number for each class",
    lambda given: given == "auto" or isinstance(given, dict) or given.endswith((".yaml", ".yml", ".json")),
)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels and classes."""

    __slots__ = ()

    label_smoothing: float = setting(0.0, BELOW_ONE)
    """Label smoothing of the cross-entropies, in [0, 1)."""
    mixup: float = setting(0.0, ALPHA)
    """Blend pairs of images and their labels: Beta's alpha; 0: off.
    Zhang et al. (2018); 0.2, say. A share is drawn for each batch from Beta(alpha, alpha). Each image of a pair keeps
    that share of itself and gets the rest from the other. With cutmix too, a coin chooses one of them for each
    batch."""
    cutmix: float = setting(0.0, ALPHA)
    """Swap a box between pairs of images: Beta's alpha; 0: off.
    Yun et al. (2019); 1, say. The share that an image keeps of itself is drawn from Beta(alpha, alpha). The label is
    mixed by the pixels that were swapped."""
    mix_off_epochs: int = setting(0, AT_LEAST_ZERO)
    """Epochs at the end without mixup and cutmix."""
    class_weights: dict[str, float] | str | None = setting(None, WEIGHTS)
    """Weight of each class in the cross-entropies: auto or a file.
    auto: in inverse proportion to the number of its training images, with the mean 1 over the classes. A file is YAML
    with a line for each class, such as `cat: 2.5`. The run keeps the values. Null: all alike."""
    balanced_sampling: bool = False
    """Draw as many images of every class in an epoch.
    An epoch is as long as without: of N images and K classes it shows N / K images of each class, to one image. Those
    of a small class come several times, each time augmented anew; of a large class each epoch shows others. So an epoch
    is no pass over all images. Not with corrupt_labels, repeats, class_weights auto, or data sets of people."""
