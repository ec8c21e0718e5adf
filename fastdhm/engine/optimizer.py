"""What the config of a run says of its optimizer and learning rate."""

import torch
from torch import nn

from fastdhm.config import TrainConfig
from fastdhm.engine.optim.by_name import make_optimizer, refused
from fastdhm.engine.optim.schedule import learning_rate


def learning_rate_of(config: TrainConfig, now: float) -> float:
    """A run's learning rate at the time ``now``, in epochs."""
    return learning_rate(
        now, lr=config.peak_lr, epochs=config.epochs, schedule=config.schedule, milestones=config.milestones,
        gamma=config.gamma, warmup_epochs=config.warmup_epochs, warmup_lr=config.warmup_lr, warmup=config.warmup,
        cycle_epochs=config.cycle_epochs, cycle_factor=config.cycle_factor,
    )  # fmt: skip


def optimizer_of(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a config asks for, over all parameters of ``model``."""
    return make_optimizer(
        model, config.optimizer, arguments=config.optimizer_args,
        lr=config.peak_lr, momentum=config.momentum, nesterov=config.nesterov, betas=config.betas,
        weight_decay=config.weight_decay, decay_norm_bias=config.decay_norm_bias, layer_decay=config.layer_decay,
    )  # fmt: skip


def check_optimizer(config: TrainConfig) -> None:
    """``ValueError`` if there is no such optimizer, or a step of a small network shows that it does not go."""
    with torch.random.fork_rng(devices=[]):
        small = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(3)), nn.BatchNorm2d(2))
        optimizer = optimizer_of(config, small)
        small(torch.randn(4, 2, 2, 2)).square().mean().backward()
    try:
        optimizer.step()
    except (ValueError, TypeError, AssertionError, RuntimeError, LookupError) as error:
        raise refused(config.optimizer, config.optimizer_args, error) from error
