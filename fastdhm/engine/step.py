"""One step of a run: the part that is differentiated, and what the optimizer makes of it.

Legend: A the branches that a step computes, B batch, K classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdhm.data.loaders.loader import Batch
from fastdhm.engine import distributed
from fastdhm.engine.device import autocast
from fastdhm.engine.evaluate import count_correct
from fastdhm.engine.fast.blocks import allow_compilations
from fastdhm.engine.gradients import gradient_cosines
from fastdhm.engine.labels import Labels
from fastdhm.engine.run import Run
from fastdhm.methods import scale_mimicking
from fastdhm.models import Headless
from fastdhm.ops.linear_mimic_loss import linear_mimic_loss
from fastdhm.ops.mimic_loss import main_label, mimic_loss
from fastdhm.ops.philox import STREAM_NOISE, draw

NUM_SIDES = 3  # image sizes in a progressive run


def make_compute(
    forward: Callable[[Tensor, tuple[str, ...] | None], Any],
    temperature: float,
    label_smoothing: float,
    compiled: bool,
    impl: str = "auto",
    variants: int = 1,
    headless: Headless | None = None,
) -> Callable:
    """The differentiable part of a step.

    ``(image_BCHW, target_B, weights_AA, active, ..., taught_BK) -> loss, terms_AA, correct_A`` of B0 and the ``active``
    side branches (``None``: all), and behind them of the teacher whose logits are ``taught_BK``, if there is one. What
    stands between are the fields of :class:`Labels`. ``forward``, a model or a replacement for it, gives the branches'
    logits, or for a ``headless`` model their features. ``variants`` is the number of graphs that torch.compile will see
    in a run at each image size: sets of branches, times two if the run begins with a part frozen.
    """

    def compute(
        image_BCHW: Tensor,
        target_B: Tensor,
        weights_AA: Tensor,
        active: tuple[str, ...] | None = None,
        target2_B: Tensor | None = None,
        share_B: Tensor | None = None,
        row_weight_B: Tensor | None = None,
        taught_BK: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mix = None if target2_B is None or share_B is None else (target2_B, share_B)
        settings: dict[str, Any] = {"mix": mix, "row_weight_B": row_weight_B, "impl": impl}
        settings |= {"temperature": temperature, "label_smoothing": label_smoothing}
        if headless is not None:
            features, heads = forward(image_BCHW, active), headless.heads(active)
            loss, terms_AA, correct_A = linear_mimic_loss(
                features, *heads, target_B, weights_AA, count_correct=True, **settings
            )
            return loss, terms_AA, correct_A
        logits_ABK = forward(image_BCHW, active)
        if taught_BK is not None:
            logits_ABK = torch.cat([logits_ABK, taught_BK[None].to(logits_ABK.dtype)])
        loss, terms_AA = mimic_loss(logits_ABK, target_B, weights_AA, **settings)
        return loss, terms_AA, count_correct(logits_ABK.detach(), main_label(target_B, mix), 1)

    if not compiled:
        return compute
    # A progressive run has three shapes, each worth its own kernels (dynamic=False); so has each variant.
    # torch counts them for all runs of a process together, so the limit rises with each run.
    allow_compilations(NUM_SIDES * variants)
    return torch.compile(compute, fullgraph=True, dynamic=False)


def make_step(run: Run, compute: Callable) -> Callable:
    """One optimizer step on a batch, in ``accumulate`` parts one after the other; it never waits for the device."""
    config, parts = run.config, run.config.accumulate

    def step(
        image_BCHW: Tensor, labels: Labels, weights_AA: Tensor, active: tuple[str, ...] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        values: list[tuple[Tensor, Tensor, Tensor]] = []
        for part, (image, own) in enumerate(zip(image_BCHW.chunk(parts), labels.chunk(parts), strict=True), 1):
            with autocast(run.device, run.precision):
                call = run.shared.around(compute, active, last=part == parts)
                loss, terms_AA, correct_A = call(image, own.target_B, own.as_part(weights_AA), active, *own.soft)
            run.scaler.scale(loss / parts).backward()
            values.append((loss.detach() / parts, own.as_part(terms_AA) / parts, correct_A))
        loss, terms_AA, correct_A = (functools.reduce(torch.add, column) for column in zip(*values, strict=True))
        if config.clip_grad is not None:
            run.scaler.unscale_(run.optimizer)
            nn.utils.clip_grad_norm_(run.model.parameters(), config.clip_grad)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        if run.average is not None:
            run.average.update(run.at.step)
        run.optimizer.zero_grad()
        return loss, terms_AA, correct_A

    return step


def noise_seed(seed: int, step: int, rank: int) -> int:
    """What the random numbers of a step, such as those of dropout, begin with in a process of several: each has other
    ones, which a resumed run has again."""
    high, low, _, _ = draw(rank, step, STREAM_NOISE, seed)
    return high << 31 | low >> 1


def take_step(run: Run, step: Callable, batch: Batch, scale: float, side: int) -> Tensor:
    """Take a step on a batch from a loader and add its numbers to the run's sums; returns the loss, on the device.

    Args:
        step: as :func:`make_step` returns it.
        scale: factor of the mimicking weights.
        side: short side of the images that the network sees.
    """
    image_BCHW, labels = run.prepare(batch, run.at.epoch, side)
    active, weights_AA = run.sample()
    if distributed.count() > 1:
        torch.manual_seed(noise_seed(run.config.seed, run.at.step, distributed.rank()))
    _measure_cosines(run, image_BCHW, labels, active)
    run.between_steps = False
    loss, terms_AA, correct_A = step(image_BCHW, labels, run.taught(scale_mimicking(weights_AA, scale)), active)
    run.at.batch, run.at.step = run.at.batch + 1, run.at.step + 1
    # count terms that the ramp has scaled to 0, too (hence the unscaled weights)
    members = (*active, *run.sums.names[len(run.model.branch_names) :])  # and the teacher
    run.sums.add(run.at.step, len(labels.target_B), loss, terms_AA, correct_A, run.taught(weights_AA), members)
    run.between_steps = True
    return loss


def _measure_cosines(run: Run, image_BCHW: Tensor, labels: Labels, active: tuple[str, ...]) -> None:
    """Before every ``grad_cosine``-th step, note how far the branches' gradients agree at the forks.

    Of a batch that is cut into parts, only the first part is used.
    """
    config = run.config
    if config.grad_cosine and run.at.step % config.grad_cosine == 0:
        part = (image_BCHW.chunk(config.accumulate)[0], labels.chunk(config.accumulate)[0])
        cosines = gradient_cosines(
            run.model, *part, active,
            precision=run.precision, label_smoothing=config.label_smoothing, scaler=run.scaler,
        )  # fmt: skip
        run.sums.measure(cosines)
