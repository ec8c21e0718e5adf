"""The paper's settings as data: what a data set, an architecture and a method set in a run's config.

Sources: the recipes table of the paper's experiments section (4.1, 4.2) and the authors' released commands; what is not
in the paper says so.
"""

from typing import Any

from fastdhm.errors import UserError

# The mean and standard deviation of each data set's training images.
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
CIFAR100 = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}
FASHION_MNIST = {"mean": (0.2860, 0.2860, 0.2860), "std": (0.3530, 0.3530, 0.3530)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

SHALLOW = ("resnet18", "resnet34")
IMAGENET_ARCHS = (*SHALLOW, "resnet50", "resnet101", "resnet152")

DEFAULT_ARCH = {
    "fashion-mnist": "resnet14", "imagenet": "resnet50", "folder": "resnet18", "synthetic": "resnet8",
    "market1501": "resnet50", "dukemtmc": "resnet50", "reid-folder": "resnet50", "reid-synthetic": "resnet8",
}  # fmt: skip


# ``--preset fast``: what it changes in the recipe, for a given error in less time and not for the lowest in the end.
# One cycle of the learning rate that ends at 0 (Smith and Topin, 2018), larger batches with the rate scaled to them and
# no decay of norms and biases (Goyal et al., 2017), small images first (Touvron et al., 2019). Fashion-MNIST's values
# were measured, the others were not.
ONE_CYCLE = {
    "schedule": "linear", "milestones": (), "warmup": "linear", "warmup_lr": 0.0, "nesterov": True, "scale_lr": True,
    "decay_norm_bias": False,
}  # fmt: skip
SHORT_CIFAR = {
    **ONE_CYCLE,
    "epochs": 40, "batch_size": 256, "warmup_epochs": 2.0, "weight_decay": 5e-4, "mimic_warmup": 4.0,
    "progressive": 0.5,
}  # fmt: skip
FAST = {
    "fashion-mnist": {
        **ONE_CYCLE,
        "epochs": 2, "batch_size": 128, "lr": 0.2, "warmup_epochs": 0.3, "mimic_warmup": 1.0, "progressive": 0.75,
    },
    "cifar10": SHORT_CIFAR, "cifar100": SHORT_CIFAR,
    "imagenet": {
        **ONE_CYCLE,
        "epochs": 30, "batch_size": 512, "warmup_epochs": 2.0, "label_smoothing": 0.1, "mimic_warmup": 3.0,
        "progressive": 0.6,
    },
    "folder": {**ONE_CYCLE, "epochs": 15, "batch_size": 64, "mimic_warmup": 3.0, "progressive": 0.6},
    "synthetic": {**ONE_CYCLE, "epochs": 2, "mimic_warmup": 0.5, "batch_size": 128, "progressive": 0.5},
}  # fmt: skip
# Every set of side branches, the empty one too, is as likely as any other in a step, and the others are not computed.
SOME_BRANCHES = {"sampler": "structural"}


def recipe(dataset: str, arch: str | None, method: str, preset: str = "paper") -> dict[str, Any]:
    """The config values that ``dataset``, ``arch`` (``None``: the data set's usual one), ``method`` and ``preset`` set.

    Raises:
        ValueError: there is no such preset for the data set.
    """
    kind = dataset.partition(":")[0]
    arch = arch or DEFAULT_ARCH.get(kind, "resnet32")
    make = {
        "fashion-mnist": _fashion_mnist, "imagenet": _imagenet, "folder": _folder, "synthetic": _synthetic,
        "market1501": _reid, "dukemtmc": _reid, "reid-folder": _reid, "reid-synthetic": _reid_synthetic,
    }  # fmt: skip
    values = make.get(kind, _cifar)(arch, method)
    if kind == "cifar10":
        values |= CIFAR10
    values["lr_batch_size"] = values["batch_size"]
    if preset != "paper":
        presets = {
            "efficient": {kind: _efficient(method)}, "fast": FAST, "modern": {"imagenet": _modern()},
            "finetune": {"folder": _finetune()},
        }[preset]  # fmt: skip
        if kind not in presets:
            known = ", ".join(presets)
            raise UserError(
                f"preset is {preset}: there is none for {kind}, but for {known}; leave it out, or set the values"
            )
        values |= presets[kind]
        if preset == "fast" and method == "dhm":
            values |= SOME_BRANCHES
    return {"dataset": dataset, "arch": arch, "method": method, "preset": preset, **values}


def warm_up(values: dict[str, Any], epochs: float) -> dict[str, Any]:
    """What a scaled learning rate needs beside it, in a recipe of ``values`` that has none, for a run of ``epochs``: a
    warm-up from the unscaled rate over 5 epochs (Goyal et al., 2017), or 5% of a run that is shorter than 100.
    """
    if values.get("warmup_epochs"):
        return {}
    return {"warmup": "linear", "warmup_epochs": min(5.0, epochs / 20), "warmup_lr": values["lr"]}


def official(dataset: str | None, arch: str) -> dict[str, Any]:
    """The config values of a checkpoint that the authors' released code trained on ``dataset`` (``None``: imagenet, or
    cifar100 for the networks of small images). Its script normalises CIFAR-100 by CIFAR-10's values."""
    dataset = dataset or ("imagenet" if arch in IMAGENET_ARCHS else "cifar100")
    values = recipe(dataset, arch, "dhm") | {"precision": "float32", "keep": "last"}
    return values | CIFAR10 if dataset == "cifar100" else values


def _cifar(arch: str, method: str) -> dict[str, Any]:
    """CIFAR-100 (Table 1). CIFAR-10, which the paper has no row for, takes the same."""
    values = {
        **CIFAR100,
        "image_size": 32, "crop": "pad", "pad": 4, "flip": True,
        "epochs": 164, "lr": 0.1, "milestones": (81.0, 122.0), "gamma": 0.1, "batch_size": 128, "weight_decay": 1e-4,
    }  # fmt: skip
    if arch in ("resnet110", "resnet1202"):  # "usually need a lower-LR warm-up": 0.01 for the first epoch
        values |= {"warmup_epochs": 1.0, "warmup_lr": 0.01, "warmup": "constant"}
    elif arch.startswith("densenet"):
        values |= {"epochs": 300, "milestones": (150.0, 225.0), "batch_size": 64}
    elif arch.startswith("wrn"):  # the weight decay is the released command's; the text says 1e-4
        values |= {"epochs": 200, "milestones": (60.0, 120.0, 160.0), "gamma": 0.2, "weight_decay": 5e-4}
    return values


def _imagenet(arch: str, method: str) -> dict[str, Any]:
    """ImageNet, ResNet (Table 2): the best epoch counts; DHM on shallow ResNets goes without scale augmentation."""
    return {
        **IMAGENET,
        "image_size": 224, "crop": "shift" if arch in SHALLOW and method == "dhm" else "scale", "crop_ratio": 0.875,
        "flip": True, "epochs": 90, "lr": 0.1, "milestones": (30.0, 60.0), "gamma": 0.1, "batch_size": 256,
        "weight_decay": 1e-4, "keep": "best",
    }  # fmt: skip


def _efficient(method: str) -> dict[str, Any]:
    """``fastdhm train --preset efficient``: the recipe with one side branch, B2, in place of B1 and B2.

    ResNet-20 on 100 classes of characters, 40 epochs, five seeds, on one core of an EPYC. The difference from the
    baseline is paired by seed, with its 95% interval. Work and time are those of the training, over the baseline's:

    =========  ===============  ======================  ====  ====
    branches   error of B0, %   from the baseline       work  time
    =========  ===============  ======================  ====  ====
    none       25.33 +- 0.58                            1     1
    B2         24.35 +- 0.51    -0.98 (-1.91 to -0.05)  1.52  1.4
    B1 and B2  24.10 +- 0.11    -1.24 (-2.08 to -0.40)  2.75  2.1
    =========  ===============  ======================  ====  ====
    """
    return {} if method == "baseline" else {"branches": ("B2",)}


def _modern() -> dict[str, Any]:
    """``fastdhm train --dataset imagenet --arch resnet50 --preset modern``: what today's trainers put into an epoch.

    Sources, with the top-1 accuracy that they report for a plain ResNet-50 at 224 pixels, and not for this recipe:

    - torchvision's "new recipe": TrivialAugment, erasing, mixup 0.2, cutmix 1, smoothing, cosine with a warm-up, no
      decay of norms, an average of the weights, lr 0.5 for 1,024 images, decay 2e-5: 80.86% after 600 epochs on 8 GPUs.
    - timm's "ResNet strikes back", A3 (Wightman et al., 2021): 100 epochs at 160 pixels, mixup 0.1: 78.1%.
    - ffcv-imagenet, without mixes: small images first, one cycle, smoothing: 73.8% after 16 epochs in 15 minutes, 78.4%
      after 88 in 77, on 8 A100.

    Here: torchvision's, in A3's epochs and with its mild mixup, small images first as ffcv's. The rate is for 256
    images; it follows ``--batch-size``. The whole was not run on ImageNet.
    """
    return {
        "epochs": 100, "batch_size": 512, "lr": 0.125, "scale_lr": True, "nesterov": True, "decay_norm_bias": False,
        "weight_decay": 2e-5, "schedule": "cosine", "milestones": (), "warmup": "linear", "warmup_epochs": 5.0,
        "warmup_lr": 0.00125, "label_smoothing": 0.1, "mixup": 0.1, "cutmix": 1.0, "augment": "trivial",
        "random_erase": 0.1, "ema": 0.9999, "progressive": 0.6, "mimic_warmup": 5.0, "keep": "last",
    }  # fmt: skip


def _finetune() -> dict[str, Any]:
    """``fastdhm train --dataset folder:photos --arch resnet50 --preset finetune``: a few thousand images.

    The trunk begins from torchvision's weights, or from those of ``--weights``. The branches and the classifier begin
    anew and train alone for two epochs, at a rate that all can take (transfer of features: Kornblith et al., 2019).
    After that a low rate, mild augmentation and an average of the weights, which has most to say in short runs. B1
    and B2 both take part: that one suffices was not measured from trained weights.
    """
    return {
        "weights": "imagenet", "freeze_epochs": 2, "epochs": 20, "batch_size": 32, "lr": 0.01, "nesterov": True,
        "decay_norm_bias": False, "weight_decay": 1e-4, "schedule": "cosine", "warmup_epochs": 1.0,
        "label_smoothing": 0.1, "augment": "trivial", "random_erase": 0.1, "ema": 0.99, "mimic_warmup": 3.0,
        "keep": "best", "branches": None,
    }  # fmt: skip


def _reid(arch: str, method: str) -> dict[str, Any]:
    """Market-1501 and DukeMTMC-reID (Table 3): ResNets from ImageNet weights, whose new layers first train alone, and
    MobileNet from scratch. The paper smooths the labels and does not say by how much: 0.1 is the usual.
    """
    values = {
        **IMAGENET,
        "image_size": (256, 128), "crop": "enlarge", "flip": True, "batch_size": 32,
        "optimizer": "amsgrad", "betas": (0.9, 0.999), "weight_decay": 5e-4, "label_smoothing": 0.1, "gamma": 0.1,
    }  # fmt: skip
    if arch in IMAGENET_ARCHS:
        begun = {"weights": "imagenet", "freeze_epochs": 10}
        return values | {"epochs": 60, "lr": 3e-4, "milestones": (20.0, 40.0), **begun}
    return values | {"epochs": 90, "lr": 1e-3, "milestones": (30.0, 60.0)}


def _reid_synthetic(arch: str, method: str) -> dict[str, Any]:
    """Drawn people, from scratch in a minute or two on two cores; not in the paper. Small images, and one cycle."""
    return _reid(arch, method) | {
        "image_size": (64, 32), "weights": None, "freeze_epochs": 0, "epochs": 20, "lr": 3e-3, "milestones": (),
        "schedule": "linear", "warmup_epochs": 1.0, "mimic_warmup": 5.0, "log_every": 8,
    }  # fmt: skip


def _folder(arch: str, method: str) -> dict[str, Any]:
    """One's own images; not in the paper. A short run on few images: small batches, cosine, a ramp of the mimicking.

    Branches as ``--preset efficient`` has them.
    """
    large = arch in IMAGENET_ARCHS
    return {
        **IMAGENET,
        "image_size": 224 if large else 32, "crop": "scale" if large else "pad", "crop_ratio": 0.875 if large else 1.0,
        "flip": True, "epochs": 30, "lr": 0.02 if large else 0.05, "batch_size": 32, "weight_decay": 5e-4,
        "schedule": "cosine", "warmup_epochs": 2.0, "mimic_warmup": 5.0, "keep": "best", **_efficient(method),
    }  # fmt: skip


def _fashion_mnist(arch: str, method: str) -> dict[str, Any]:
    """Fashion-MNIST in minutes on two cores; not in the paper. So few epochs gain nothing from augmentation.

    B1, the wide branch, costs as much as the rest of the network: without it the run is long enough to be worth it.
    """
    return {
        **FASHION_MNIST,
        "image_size": 28, "crop": "center", "flip": False, "progressive": 0.75, "branches": ("B2",),
        "epochs": 3, "lr": 0.1, "batch_size": 64, "weight_decay": 5e-4, "nesterov": True,
        "schedule": "linear", "warmup_epochs": 0.4, "mimic_warmup": 1.0, "log_every": 20,
    }  # fmt: skip


def _synthetic(arch: str, method: str) -> dict[str, Any]:
    """Drawn images that need no download: a first look, and a smoke test."""
    changes = {"image_size": 32, "crop": "pad", "progressive": 0.0, "branches": None}
    return _fashion_mnist(arch, method) | IMAGENET | changes
