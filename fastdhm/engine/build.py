"""From a config to opened images, a built network and its optimizer; from a file to the network in it."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.data import DataOptions, LoadedData, LoadedSplit, open_loaders, open_splits
from fastdhm.data.augment.augmentation import Augmentation
from fastdhm.data.augment.policy import parse_policy, spread_of
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.sources.identity import Identity
from fastdhm.engine import distributed
from fastdhm.engine.device import pick_device, pick_workers
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.names import NETWORK
from fastdhm.errors import UserError, few
from fastdhm.system.paths import shown

if TYPE_CHECKING:
    from fastdhm.system.console import Console  # rich is not needed to load a network

IMAGENET = "imagenet"  # the weights that torchvision has


def open_data(config: TrainConfig, console: Console) -> LoadedData:
    """The loaders of a run. Files that they need are built first; ``console`` shows it."""
    return open_loaders(config.dataset, _data_dir(config), data_options(config), say=console.print)


def opened_alike(data: LoadedData, config: TrainConfig, console: Console) -> LoadedData:
    """``data`` by the loader that the first process has taken: machines may differ in memory, and in what they have."""
    kind = distributed.from_first(data.kind)
    if kind == data.kind:
        return data
    data.close()
    return open_data(replace(config, loader=kind), console)


def open_to_judge(config: TrainConfig, console: Console, *splits: str) -> list[LoadedSplit]:
    """Splits of a run's data set to judge its network on, in order; ``console`` shows what is built.

    Each of several processes reads its batches of them.
    """
    return open_splits(config.dataset, _data_dir(config), splits, data_options(config), say=console.print)


def _data_dir(config: TrainConfig) -> Path:
    assert config.data_dir is not None  # the run is settled
    return Path(config.data_dir)


def data_options(config: TrainConfig) -> DataOptions:
    """How a run reads its images."""
    device = pick_device(config.device)
    return DataOptions(
        loader=config.loader, batch_size=config.batch_size, eval_batch_size=config.eval_batch_size,
        image_size=config.image_size, crop=config.crop, crop_ratio=config.crop_ratio, seed=config.seed,
        workers=pick_workers(config.workers, device), device=str(device),
        share=(distributed.rank(), distributed.count()), accumulate=config.accumulate,
        settings=how_stored(config), grey_range=config.grey_range,
        skip_bad=config.skip_bad, hold_out=config.hold_out, subset=config.subset, repeats=config.repeats,
        balanced=config.balanced_sampling,
    )  # fmt: skip


def training_transform(config: TrainConfig) -> DeviceTransform:
    """What a run does to its training images on the device.

    Raises:
        ValueError: there is no such policy.
    """
    policy, jitter = parse_policy(config.augment), spread_of(config.color_jitter)
    augmentation = Augmentation(
        policy=policy, jitter=jitter, grey=config.random_grey, erase=config.random_erase, seed=config.seed
    )
    pad = config.pad if config.crop == "pad" else 0
    return DeviceTransform(
        config.mean, config.std, pad=pad, flip=config.flip, augmentation=augmentation or None, seed=config.seed
    )


def how_stored(config: TrainConfig) -> ImageSettings | None:
    """How the run wants its images stored; None if it has no wish."""
    store, size, quality = config.store, config.store_size, config.store_quality
    if store is None and size is None and quality is None:
        return None
    return ImageSettings.for_dataset(config.dataset, store=store, size=size, quality=quality)


def build_model(config: TrainConfig, num_classes: int) -> models.BranchedModel:
    """The network of a run, randomly initialised. A baseline has no branches, or is a single branch."""
    if config.only_branch is not None:
        return _alone(config, num_classes, config.only_branch)
    branches = () if config.method == "baseline" else config.branches
    return models.build(config.arch, num_classes, branches, dropout=config.dropout)


def build_plain(config: TrainConfig, num_classes: int) -> nn.Module:
    """The network that a run leaves behind when it is stripped, randomly initialised."""
    return _alone(config, num_classes, config.only_branch or "B0").strip()


def _alone(config: TrainConfig, num_classes: int, branch: str) -> models.BranchedModel:
    return models.build_alone(config.arch, num_classes, branch, dropout=config.dropout)


def weights_of(config: TrainConfig) -> str | None:
    """The file that a run starts from, and the network in it; None for torchvision's weights.

    Of a run it is the checkpoint that its network comes from, and of a checkpoint the average of the weights, if any.
    """
    if config.weights in (None, IMAGENET):
        return None
    path, entry = models.chosen_weights(config.weights)
    if path.is_dir():
        path = checkpoint.kept_checkpoint(path, checkpoint.run_config(path))
    with suppress(UserError):  # a file of another program
        entry = entry or ("average" if "average" in checkpoint.load_checkpoint(path, mmap=True) else "model")
    return f"{path}:{entry}" if entry else str(path)


@dataclass(frozen=True)
class Trained:
    """The networks that lie at a path, branched, plain, or both; the config of their run; and what they learnt from."""

    networks: list[nn.Module]
    config: TrainConfig
    classes: tuple[str, ...]
    data: Identity
    """Which images; empty if an older version wrote the file."""
    step: int | None = None
    """How far it was trained; None where the file does not say."""

    @property
    def plain(self) -> nn.Module:
        """The network without branches."""
        network = self.networks[0]
        return network.strip() if isinstance(network, models.BranchedModel) else network


def load_trained(path: Path, branch: str | None = None) -> Trained:
    """Load what lies at ``path``: a checkpoint, a network, or a run directory.

    A run directory gives its stripped network and the checkpoint that this comes from. With ``branch`` there is one
    network: that branch with the trunk up to its fork, or of "ensemble" the mean of all branches' probabilities.
    """
    if branch is not None:
        return _one_branch(load_trained(path), branch, path)
    if path.is_dir():
        config = checkpoint.run_config(path)
        found = load_trained(checkpoint.kept_checkpoint(path, config))
        stripped = path / NETWORK
        plain_too = load_trained(stripped).networks if stripped.exists() else []
        return replace(found, networks=found.networks + plain_too, config=config)
    if not path.exists():
        raise UserError(f"{path} is not there: name a run directory, a checkpoint (.pt) or a network (.safetensors)")
    if path.suffix == ".safetensors":
        state, config, classes, data = checkpoint.load_network(path)
        network = build_plain(config, len(classes))
        checkpoint.load_weights(network, state, path, config.arch)
        return Trained([network], config, classes, data)
    saved = checkpoint.load_checkpoint(path)
    config, classes = checkpoint.config_from(saved["config"], path), tuple(saved["classes"])
    model = build_model(config, len(classes))
    checkpoint.load_weights(model, checkpoint.judged(saved), path, config.arch)
    return Trained([model], config, classes, saved.get("data", {}), saved.get("position", {}).get("step"))


def _one_branch(trained: Trained, branch: str, path: Path) -> Trained:
    model, main = trained.networks[0], trained.config.only_branch or "B0"
    if isinstance(model, models.BranchedModel):
        network = models.one_network(model, branch, (3, *height_width(trained.config.image_size)))
    elif branch == main:
        network = model
    else:
        raise UserError(
            f"{path} holds the plain network alone, not {branch}: name its run directory, best.pt or last.pt"
        )
    return replace(trained, networks=[models.BranchedModel(network, {}, {}, main=branch)])


def check_finite(trained: Trained, path: Path) -> None:
    """``ValueError`` if a weight of the networks at ``path`` is NaN or infinite."""
    tensors = [pair for network in trained.networks for pair in network.state_dict().items()]
    if broken := [name for name, tensor in tensors if not tensor.isfinite().all()]:
        raise UserError(f"{shown(path)} holds NaN or infinity ({few(broken, 3)}): take an earlier checkpoint")


def check_network(trained: Trained) -> None:
    """``ValueError``, in every process, unless all have loaded the same; before it is moved to a device."""
    if distributed.count() > 1:
        tensors = [tensor for network in trained.networks for tensor in network.state_dict().values()]
        found = [zlib.crc32(tensor.flatten().view(torch.uint8).numpy()) for tensor in tensors]
        distributed.check_alike("networks of ", {"classes": trained.classes, "weights": found})
