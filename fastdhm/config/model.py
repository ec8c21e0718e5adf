"""Which network is trained, what grows from it, and what it starts from."""

from dataclasses import dataclass

from fastdhm.config.rules import AT_LEAST_ZERO, BELOW_ONE, setting


@dataclass(frozen=True, kw_only=True)
class Model:
    """Network and branches."""

    __slots__ = ()

    arch: str = "resnet20"
    """Network, such as resnet50 or timm:NAME.
    For photographs: resnet18, 34, 50, 101, 152 or mobilenet. For images of about 32 pixels: resnet8, 14, 20, 32 and
    every sixth on, densenet-DEPTH-GROWTH, densenet-bc-DEPTH-GROWTH or wrn-DEPTH-WIDTH. Any other: torchvision:NAME or
    timm:NAME. `fastdhm models` lists what they cost."""
    branches: tuple[str, ...] | None = None
    """Side branches to grow, such as B1,B2,B3.
    The baseline has none. Null: the paper's, B1 and B2."""
    only_branch: str | None = None
    """Train this branch alone, as a baseline: B0 or B1, say.
    The trunk up to the branch's fork and the branch are the whole network; B0 is the trunk itself.
    Null: the method decides."""
    weights: str | None = None
    """Weights to start from: imagenet, a run, or a file.
    imagenet is torchvision's. A run, or a checkpoint of one, gives its branches too, where they are built alike. Of a
    file that holds several networks, FILE:ENTRY takes one: last.pth:model_ema, say. A classifier of other classes is
    left out. Null: random."""
    freeze_epochs: int = setting(0, AT_LEAST_ZERO)
    """Epochs at the start in which pre-trained layers are frozen.
    Only what the weights lack trains then: the branches and the classifier."""
    dropout: float = setting(0.0, BELOW_ONE)
    """Share of activations that a wide ResNet drops.
    In [0, 1). A wide ResNet is wrn-DEPTH-WIDTH; it drops them between the convolutions of a block."""
