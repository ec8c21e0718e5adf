"""What a training run is made of: model, optimizer, sums, position.

Legend: M branches, A those that a step computes, S = M - 1 side branches, B batch, K classes.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdhm import methods, models
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.data.augment.transforms import DeviceTransform, shrink
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.loaders.loader import Batch
from fastdhm.data.sources.identity import Identity, changes
from fastdhm.engine import distributed
from fastdhm.engine.build import build_model, training_transform, weights_of
from fastdhm.engine.device import keep_freed_memory, pick_device, pick_precision, placed, restart_peak
from fastdhm.engine.fast.fuse import FusedForward
from fastdhm.engine.fast.synced_norm import sync_batch_norms
from fastdhm.engine.gradients import cosine_names
from fastdhm.engine.headless import pick_headless
from fastdhm.engine.hours import Hours, time_in_schedule
from fastdhm.engine.labels import Labelling, Labels
from fastdhm.engine.optim.average import WeightAverage
from fastdhm.engine.optim.by_name import is_schedule_free
from fastdhm.engine.optim.optimizer import freeze, place_learning_rate, set_learning_rate
from fastdhm.engine.optim.schedule import full_size_steps, image_side, mimic_scale
from fastdhm.engine.optim.schedule_free import ScheduleFreeAverage
from fastdhm.engine.optimizer import learning_rate_of, optimizer_of
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.checkpoint import Position
from fastdhm.engine.saved.names import LAST, NETWORK
from fastdhm.engine.saved.record import to_host
from fastdhm.engine.shared_gradients import SharedGradients, average_buffers
from fastdhm.engine.sums import NonFiniteLoss, TrainingSums
from fastdhm.engine.teacher import TEACHER, check_same, open_teacher
from fastdhm.engine.timer import Stopwatch
from fastdhm.errors import UserError
from fastdhm.ops.branch_mask import branch_mask


class Run:
    """Everything that a run is made of and that a checkpoint restores."""

    def __init__(self, config: TrainConfig, run_dir: Path, classes: tuple[str, ...]):
        torch.manual_seed(config.seed)
        self.config, self.dir, self.classes = config, run_dir, classes
        self.device = pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device)
        model = build_model(config, len(classes))
        if config.activation_checkpointing:
            models.checkpoint_activations(model)
        self.model = placed(model, self.device)
        # what an uncompiled training step runs; a compiled one starts from the model, as torch.compile fuses by itself
        self.headless, self.why_logits = pick_headless(config, model, len(classes), self.device, self.precision)
        self.config = config = dataclasses.replace(config, loss="linear" if self.headless else "logits")
        self.forward: Callable[[Tensor, tuple[str, ...] | None], Any] = self.network
        if self.device.type == "cpu" and config.impl != "eager":
            keep_freed_memory()
            self.forward = FusedForward(model, self.network)
        side_branches = model.branch_names[1:]
        self.branch_sets = {side_branches: 1.0}  # and how likely a step computes each
        if config.sampler == "structural":
            self.branch_sets = methods.branch_sets(config.branch_sets, side_branches)
        strengths = (config.direction, config.ce_weight, config.mimic_weight)
        self.weights = {  # a set of fewer branches has a smaller matrix of the same method
            active: methods.weight_matrix(config.method, 1 + len(active), *strengths).to(self.device)
            for active in self.branch_sets
        }
        self.keep_S = torch.full((len(side_branches),), config.keep_prob, device=self.device)
        self.epoch_steps = 1  # known once it has its data
        self.labelling = Labelling(config, len(classes), self.device)
        self.num_views: int | None = None  # set if an epoch's crops and flips are drawn at its beginning
        self.identity: Identity = {}  # the images that it learns from and is judged on
        self.pretrained: tuple[str, ...] = ()  # the parameters that were loaded and not drawn
        self.begun: tuple[str, ...] = ()  # where they were in the file, and what was converted
        self.optimizer = optimizer_of(config, model)
        place_learning_rate(self.optimizer, self.device, config.cuda_graphs)
        self.average: WeightAverage | ScheduleFreeAverage | None = None
        if is_schedule_free(config.optimizer):
            self.average = ScheduleFreeAverage(model, self.optimizer)
        elif config.ema:
            self.average = WeightAverage(model, config.ema)
        if config.sync_bn:
            for network in (model, self.judged):
                sync_batch_norms(network, distributed.group())
        self.shared = SharedGradients(compress=config.compress_gradients)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.side = min(height_width(config.image_size))  # the short side of a whole image
        self.teacher = open_teacher(config, classes, self.device)
        names = (*model.branch_names, *([TEACHER] if self.teacher else []))
        self.sums = TrainingSums(names, self.device, cosine_names(model))
        self.at = Position()
        work = partial(full_size_steps, run_steps=config.epochs, side=self.side, progressive=config.progressive)
        self.hours = Hours(config.hours, config.epochs, work)
        self.between_steps = True  # its state can be saved only there
        self.stopwatch = Stopwatch()
        self.peak_restarts = True
        self.train_transform = training_transform(config).to(self.device)
        self.val_transform = DeviceTransform(config.mean, config.std).to(self.device)

    def learn_from(self, data: LoadedData) -> None:
        """Take note of the images to train on."""
        self.identity, self.epoch_steps = data.identity, len(data.train)
        self.labelling.learn_from(data.target_N, self.classes)
        if not self.config.balanced_sampling:  # which has far more views than it shows
            self.num_views = len(data.target_N) * self.config.repeats

    def load_pretrained(self) -> None:
        """Start from the weights that the config names; raises as ``models.load_pretrained``."""
        found = models.load_pretrained(self.model, self.config.arch, weights_of(self.config))
        for active in self.branch_sets if self.config.freeze_epochs else ():
            parts = ("trunk.", *(f"branches.{name}." for name in active))
            if not any(name.startswith(parts) for name in found.new):
                raise UserError(
                    f"freeze_epochs is {self.config.freeze_epochs}, but {found.source} holds all of "
                    f"{self.config.arch}, its classifier too: a step without branches would train nothing. "
                    "Set --freeze-epochs 0"
                )
        if self.average is not None:
            self.average.restart()
        self.pretrained, self.begun = found.loaded, found.notes

    @property
    def network(self) -> nn.Module:
        """What a step runs: the model, or the model up to its classifiers."""
        return self.model if self.headless is None else self.headless

    @property
    def judged(self) -> models.BranchedModel:
        """The network that is validated and kept: the average of the weights if there is one."""
        return self.model if self.average is None else self.average.model

    def begin_epoch(self) -> None:
        """Set what trains in this epoch: everything, or in the first ``freeze_epochs`` only what is new."""
        freeze(self.model, self.pretrained if self.at.epoch < self.config.freeze_epochs else ())
        self.shared.begin({self.model.main: self.model.trunk, **self.model.branches})
        if self.num_views is not None:
            self.train_transform.draw_epoch(self.num_views, self.at.epoch)
        self.peak_restarts = restart_peak(self.device)  # without the memory that a validation took

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, up to ``max_steps``."""
        return min(math.ceil(self.end * self.epoch_steps), self.config.max_steps or 1 << 62)

    @property
    def end(self) -> float:
        """The run's epochs: the config's, or what fits into its hours."""
        return self.config.epochs if self.at.plan is None else self.at.plan[2]

    @property
    def now(self) -> float:
        """Where the run stands, in epochs: the completed ones plus the fraction of this one."""
        return self.at.epoch + self.at.batch / self.epoch_steps

    def scheduled(self, now: float) -> tuple[float, float, int]:
        """What a step at the time ``now`` takes: learning rate, factor of the mimicking weights, side of the images."""
        config = self.config
        at = time_in_schedule(now, self.at.plan, config.epochs)
        side = image_side(at / config.epochs, self.side, config.progressive)
        return learning_rate_of(config, at), mimic_scale(at, config.mimic_warmup), side

    def out_of_steps(self) -> bool:
        """Whether ``max_steps`` is reached."""
        return self.config.max_steps is not None and self.at.step >= self.config.max_steps

    def out_of_time(self) -> bool:
        """Whether the ``hours`` are over, for all processes alike; asked once after each step."""
        self.at.timed_out = self.at.timed_out or self.hours.up()
        return self.at.timed_out

    def waited(self) -> bool:
        """Whether the last epoch was validated, and its error was not the lowest for ``patience`` epochs."""
        patience, at = self.config.patience, self.at
        asked = patience is not None and at.best_epoch >= 0 and at.epoch % self.config.eval_every == 0
        return asked and at.epoch - 1 - at.best_epoch >= (patience or 0)

    def trained(self) -> bool:
        """Whether the run is over: all epochs are done, or ``hours`` or ``patience`` ended it."""
        return self.at.epoch >= self.end or self.at.timed_out or self.waited()

    def ended(self) -> bool:
        """Whether nothing is left to train: the run is over, or ``max_steps`` is reached."""
        return self.trained() or self.out_of_steps()

    def plan_hours(self) -> None:
        """Plan the rest of the run by its speed so far, if it has a time; before a checkpoint, which keeps the plan."""
        self.at.plan = self.hours.plan(self.now, self.at.plan, self.stopwatch.seconds, self.config.eval_every)

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        set_learning_rate(self.optimizer, lr)

    def sample(self) -> tuple[tuple[str, ...], Tensor]:
        """The side branches that the next step computes, and ``weights_AA`` of B0 and them.

        A pure function of the seed and the run's position. The host draws which branches are computed, and the device
        draws which terms have a weight; neither waits for the other.
        """
        config = self.config
        every = config.sample_every or methods.SAMPLERS[config.sampler]
        number = self.at.epoch if every == "epoch" else self.at.step
        active = methods.pick_branches(self.branch_sets, config.seed, number)
        weights_AA = self.weights[active]
        if config.sampler == "bernoulli":
            weights_AA = methods.drop_mimicking(weights_AA, branch_mask(self.keep_S, config.seed, number))
        return active, weights_AA

    def taught(self, weights_AA: Tensor) -> Tensor:
        """The weights with those of the teacher, if there is one."""
        return weights_AA if self.teacher is None else methods.add_teacher(weights_AA, self.config.teacher_weight)

    def prepare(self, batch: Batch, epoch: int, side: int) -> tuple[Tensor, Labels]:
        """The images of the next training batch, augmented, normalised, shrunk to a short side of ``side`` and then
        mixed with each other, and their labels."""
        batch = batch.to(self.device)  # a no-op for batches from a loader
        image_BCHW = self.train_transform(batch.image_BHWC, batch.index_B, epoch, view_B=batch.view_B)
        image_BCHW = shrink(image_BCHW, side)
        return image_BCHW, self.labelling.label(batch, image_BCHW, epoch, self.at.batch, self.end)

    def state(self) -> dict[str, Any]:
        """All that a bit-for-bit continuation needs."""
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng,
            "sums": self.sums.merged(),
            "position": dataclasses.asdict(self.at),
            "train_seconds": self.stopwatch.seconds,
            "clock_seconds": self.hours.clock.seconds,
            "pretrained": list(self.pretrained),
            "data": self.identity,
            **({"teacher": self.teacher.digest} if self.teacher is not None else {}),
            **({"average": self.average.model.state_dict()} if self.average is not None else {}),
        }

    def restore(self, path: Path) -> None:
        """Take up the state that a checkpoint holds."""
        saved = checkpoint.load_checkpoint(path)
        if "optimizer" not in saved:
            raise UserError(
                f"{path} holds a network alone, and no run can go on with that: "
                f"begin one from the {NETWORK} beside it (--weights)"
            )
        if saved["classes"] != list(self.classes):
            raise UserError(f"{path} was trained on other classes than {self.config.dataset} has now")
        changed = changes(saved.get("data", {}), self.identity)
        if changed:
            raise UserError(
                f"{self.config.dataset} is not what {path} has learnt from ({'; '.join(changed)}): put it back as it "
                "was, or start a new run"
            )
        check_same(self.config, self.teacher, saved.get("teacher"), path)
        checkpoint.load_weights(self.model, saved["model"], path, self.config.arch)
        if self.average is not None:
            checkpoint.load_weights(self.average.model, saved["average"], path, self.config.arch)
        try:
            self.sums.restore(saved["sums"])
        except ValueError as error:
            raise UserError(
                f"{path} was written by another version of fastdhm: go on with that one, or start a new run"
            ) from error
        self.optimizer.load_state_dict(saved["optimizer"])
        place_learning_rate(self.optimizer, self.device, self.config.cuda_graphs)
        self.scaler.load_state_dict(saved["scaler"])
        self.at = Position(**saved["position"])
        self.stopwatch.before = saved.get("train_seconds", 0.0)
        self.hours.clock.before = saved.get("clock_seconds", self.stopwatch.before)
        self.pretrained = tuple(saved.get("pretrained", ()))
        torch.set_rng_state(saved["rng"]["cpu"])
        if self.device.type == "cuda" and "cuda" in saved["rng"]:
            torch.cuda.set_rng_state(saved["rng"]["cuda"], self.device)

    def save(self, name: str = LAST) -> None:
        """Write a checkpoint, but never a broken one: ``NonFiniteLoss`` if the loss or a weight is NaN or infinite.

        All processes call it, and the first writes.
        """
        self.sums.read()
        if isinstance(self.average, ScheduleFreeAverage):
            self.average.take(self.at.step)
        average_buffers(*dict.fromkeys((self.model, self.judged)))  # in the same order in all processes
        if not math.isfinite(to_host(nn.utils.get_total_norm(self.model.parameters()))):
            raise NonFiniteLoss(f"a weight is not finite after step {self.at.step}, before the loss itself broke")
        state = self.state()
        if distributed.rank() == 0:
            checkpoint.save_checkpoint(self.dir / name, self.config, self.classes, state)
