"""The labels that a run learns from: corrupt, mixed, weighed and balanced, as its config says.

Legend: A the branches that a step computes, B batch, K classes, N samples, S of them that are taken.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdhm.config import TrainConfig
from fastdhm.data.augment.mix import draw_mix, mix_, partners
from fastdhm.data.loaders.loader import Batch
from fastdhm.data.sources.class_weights import check_every_class, weights_by_count, weights_by_name
from fastdhm.data.sources.corrupt import corrupt_targets
from fastdhm.data.sources.subset import balanced_subset
from fastdhm.engine import distributed
from fastdhm.engine.saved.record import to_host
from fastdhm.ops.mimic_loss import mimic_loss


class Labels(NamedTuple):
    """The labels of a batch, on the device; see :func:`fastdhm.mimic_loss` for what the loss makes of them."""

    target_B: Tensor
    target2_B: Tensor | None = None
    """The label of the image that each was mixed with; None in a run that mixes none."""
    share_B: Tensor | None = None
    """The share of ``target_B``."""
    row_weight_B: Tensor | None = None
    """Of each row's cross-entropy; None: all alike."""
    part_weight: Tensor | None = None
    """What the rows of this part of a batch weigh, in the mean over all parts and processes; None: 1."""

    @property
    def soft(self) -> tuple[Tensor | None, ...]:
        """What there is beside ``target_B``: the last arguments of a step's differentiable part."""
        return self.target2_B, self.share_B, self.row_weight_B

    def cross_entropy(self, logits_BK: Tensor, label_smoothing: float) -> Tensor:
        """The cross-entropy of one branch."""
        mix = None if self.target2_B is None or self.share_B is None else (self.target2_B, self.share_B)
        loss, _ = mimic_loss(
            logits_BK[None], self.target_B, logits_BK.new_ones(1, 1),
            label_smoothing=label_smoothing, mix=mix, row_weight_B=self.row_weight_B,
        )  # fmt: skip
        return loss if self.part_weight is None else loss * self.part_weight

    def chunk(self, parts: int) -> tuple[Labels, ...]:
        """The labels of a batch in so many parts, each as heavy as its rows are."""
        columns = [(column,) * parts if column is None else column.chunk(parts) for column in self[:4]]
        weights: list[Tensor | None] = [None] * parts
        if self.row_weight_B is not None and parts * distributed.count() > 1:
            total = self.row_weight_B.sum(dtype=torch.float64)
            distributed.sum_(total)
            mean = (total / (parts * distributed.count())).clamp_min(torch.finfo(total.dtype).tiny)
            weights = [own_B.sum(dtype=torch.float64) / mean for own_B in self.row_weight_B.chunk(parts)]
        return tuple(Labels(*part) for part in zip(*columns, weights, strict=True))

    def as_part(self, terms_AA: Tensor) -> Tensor:
        """Terms or their weights, with the cross-entropies as heavy as this part is in its batch.

        The loss of a part is a mean over its own rows. So the mean over the parts and processes is that of the batch.
        """
        if self.part_weight is None:
            return terms_AA
        is_ce_AA = torch.eye(len(terms_AA), dtype=torch.bool, device=terms_AA.device)
        return torch.where(is_ce_AA, terms_AA * self.part_weight, terms_AA)


class Labelling:
    """Which labels the images of a run have: a function of its config and of (epoch, number of the batch in it).

    All that is done to labels here is done to those that the run learns from, which are the corrupt ones where it has
    such.
    """

    def __init__(self, config: TrainConfig, num_classes: int, device: torch.device):
        self.config, self.device = config, device
        self.label_N: Tensor | None = None  # by sample index if some were corrupted; else None
        self.changed = 0  # labels that were corrupted into wrong ones
        self.weight_K: Tensor | None = None
        if config.class_weights is not None:
            self.weight_K = torch.ones(num_classes, device=device)  # until it has images to learn from

    def learn_from(self, target_N: np.ndarray, classes: tuple[str, ...]) -> None:
        """Take note of the images to learn from; tables by sample and by class, so they work with every loader."""
        config, K = self.config, len(classes)
        learnt = slice(None) if config.subset is None else balanced_subset(target_N, K, config.subset)
        if config.corrupt_labels:
            label_N = corrupt_targets(target_N, K, config.corrupt_labels, config.corrupt_seed)
            self.label_N = torch.from_numpy(label_N).to(self.device)
            self.changed = int((label_N != target_N)[learnt].sum())
            target_N = label_N
        if config.balanced_sampling:
            check_every_class(target_N[learnt], classes, "balanced_sampling is true")
        if config.class_weights is not None:
            weight_K = self._weights(target_N[learnt], classes)
            self.weight_K = torch.from_numpy(weight_K).to(self.device, torch.float32)

    def _weights(self, target_S: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
        given = self.config.class_weights
        if isinstance(given, dict):
            return weights_by_name(given, classes)
        check_every_class(target_S, classes, "class_weights is auto")
        return weights_by_count(target_S, len(classes))

    @property
    def mixes(self) -> bool:
        """Whether the run mixes images; its labels then always have the form of mixed ones, so that the step has."""
        return self.config.mixup > 0 or self.config.cutmix > 0

    def label(self, batch: Batch, image_BCHW: Tensor, epoch: int, number: int, epochs: float | None = None) -> Labels:
        """The labels of a batch on the device, whose augmented images are mixed in place.

        ``epochs``: those of the run, if its hours do not allow all of the config's.
        """
        config = self.config
        epochs = config.epochs if epochs is None else epochs
        target_B = batch.target_B if self.label_N is None else self.label_N[batch.index_B % len(self.label_N)]
        target2_B = share_B = row_weight_B = None
        share = 1.0
        if self.mixes:
            if epoch < epochs - config.mix_off_epochs:
                mix = draw_mix(config.mixup, config.cutmix, seed=config.seed, epoch=epoch, batch=number)
                share = mix_(image_BCHW, mix)
            target2_B, share_B = partners(target_B), torch.full(target_B.shape, share, device=self.device)
        if self.weight_K is not None:
            row_weight_B = self.weight_K[target_B]
            if target2_B is not None:
                row_weight_B = self.weight_K[target2_B].lerp_(row_weight_B, share)
        return Labels(target_B, target2_B, share_B, row_weight_B)

    def describe(self) -> str:
        """For a person: what is done to the labels; empty if nothing is."""
        config, words = self.config, []
        kinds = [f"{name} {getattr(config, name):g}" for name in ("mixup", "cutmix") if getattr(config, name)]
        if kinds:
            off = f", off in the last {config.mix_off_epochs} epochs" if config.mix_off_epochs else ""
            words.append(f"mixed by {' or '.join(kinds)}{off}")
        if self.weight_K is not None:
            least, most = to_host(torch.stack(self.weight_K.aminmax()))
            words.append(f"classes weighed by {least:.3g} to {most:.3g}")
        words += ["as many images of every class"] * config.balanced_sampling
        words += [f"smoothed by {config.label_smoothing:g}"] * (config.label_smoothing > 0)
        return "; ".join(words)
