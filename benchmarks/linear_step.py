"""``fastdhm bench linear --step ARCH``: a training step of very many classes, its loss with the classifiers in it
against one from all logits.

Legend: A the branches that a step computes, B batch, K classes.
"""

import dataclasses

import torch

from fastdhm.benchmarks.harness import machine
from fastdhm.benchmarks.harness.frame import Frame
from fastdhm.benchmarks.harness.timing import Comparison, Peer
from fastdhm.benchmarks.reference.contender import Engine, make_config, random_batch
from fastdhm.config import TrainConfig
from fastdhm.engine.build import build_model
from fastdhm.engine.headless import logits_bytes
from fastdhm.errors import UserError

# How far the losses of the first steps may be apart, relative to their size.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2**-6, "float16": 2**-8}
STEPS = 2  # that are compared; the second shows the first one's gradients
BYTES = 2 * 12  # of a weight in both steps, with its gradient and momentum


def compare_steps(frame: Frame, arch: str, num_classes: int, batch_size: int | None, precision: str) -> Comparison:
    """Both steps from the same weights on the same batch, and their memory beyond weights and momentum.

    Raises:
        ValueError: they do not fit into memory.
    """
    config = make_config(arch, None, batch_size, precision=precision, device=str(frame.device), compile="off")
    _check_memory(config, num_classes, frame.device)
    engines = {form: Engine(dataclasses.replace(config, loss=form), num_classes) for form in ("linear", "logits")}
    batch = random_batch(config, num_classes).to(frame.device)
    losses = {form: [float(engine.train(batch)) for _ in range(STEPS)] for form, engine in engines.items()}

    def check(form: str) -> str | None:
        ours, theirs = (torch.tensor(losses[name], dtype=torch.float64) for name in (form, "logits"))
        apart = float(((ours - theirs) / theirs).abs().max())
        limit = TOLERANCES[config.precision]
        return (
            None if apart <= limit else f"losses {ours.tolist()}, {apart:.2g} from {theirs.tolist()}: over {limit:.2g}"
        )

    def peer(form: str) -> Peer:
        return Peer(name=form, run=lambda: {"loss": engines[form].train(batch)}, check=lambda _: check(form))

    names = " ".join(engines["linear"].run.model.branch_names)
    label = f"step of {arch} ({names}), batch {config.batch_size}, {num_classes:,} classes, {config.precision}"
    return frame.compare(label, [peer(form) for form in engines])


def _check_memory(config: TrainConfig, num_classes: int, device: torch.device) -> None:
    with torch.device("meta"):
        model = build_model(config, num_classes)
    logits = logits_bytes(config, len(model.branch_names), num_classes, getattr(torch, config.precision))
    needed = BYTES * sum(weight.numel() for weight in model.parameters()) + logits
    free = machine.free_bytes(device)
    if free is not None and needed > free:
        raise UserError(
            f"--classes is {num_classes}: both steps need about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are "
            "free. Give fewer"
        )
