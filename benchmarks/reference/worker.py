"""A process of ``bench scale``: ``python -m fastdhm.benchmarks.reference.worker CONFIG WAY...``.

It trains with random images by each of the :data:`WAYS` in turn, as it is told on stdin, and answers on stdout, in
lines of JSON. ``["check"]`` gives what is wrong with each way, ``[WAY, STEPS]`` the seconds that the steps took.
Several processes, told the same, are one run.
"""

import json
import sys
import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fastdhm.benchmarks.harness import timing
from fastdhm.benchmarks.harness.machine import wait_for
from fastdhm.benchmarks.reference.contender import Engine, random_batch
from fastdhm.benchmarks.reference.shared_gradients import WAYS
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.loader import Batch
from fastdhm.engine import distributed
from fastdhm.engine.device import computing_on, pick_device, use_processors
from fastdhm.models import family_of
from fastdhm.system.console import Console

CHECKED_STEPS, TOLERANCE = 4, 1e-4
TRUTH = "after"  # the way that is plainly right
ANSWER = "answer: "
MESSAGE = "message"  # in the place of a way: its gradients alone, sent after no backward pass


class Worker:
    """The engines of this process, one for each way, and its rows of the batch."""

    def __init__(self, config: TrainConfig, ways: list[str]):
        classes, rank, count = family_of(config.arch).num_classes, distributed.rank(), distributed.count()
        batch = random_batch(config, classes)
        rows = torch.arange(config.batch_size).view(count, -1)[rank]
        self.batch = Batch(batch.image_BHWC[rows], batch.target_B[rows], batch.index_B[rows])
        self.engines: dict[str, Engine] = {}
        for name in ways:
            engine, way = Engine(config, classes), WAYS[name]()
            run = engine.run
            run.shared = way
            way.begin({run.model.main: run.model.trunk, **run.model.branches})
            run.optimizer.register_step_pre_hook(lambda *_, way=way: way.finish())
            self.engines[name] = engine

    def check(self) -> dict[str, str | None]:
        """What is wrong with each way after some steps: its weights are those of :data:`TRUTH`."""
        truth, others = self._trained(TRUTH), self.engines.keys() - {TRUTH, "alone"}
        return {name: timing.failure(partial(self._fault, name, truth)) for name in sorted(others)}

    def _fault(self, name: str, truth: Tensor) -> str | None:
        return timing.disagreement(self._trained(name), truth, TOLERANCE)

    def _trained(self, name: str) -> Tensor:
        for _ in range(CHECKED_STEPS):
            self.engines[name].train(self.batch)
        return self._flat(name).cpu()

    def _flat(self, name: str) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.engines[name].run.model.parameters()])

    def seconds(self, name: str, steps: int) -> float:
        """Seconds of so many steps by a way; or of sending so many bytes as a step of all branches has."""
        engine = self.engines[TRUTH if name == MESSAGE else name]
        flat = self._flat(TRUTH) if name == MESSAGE else None
        distributed.largest(0)  # all begin together
        wait_for(engine.run.device)
        start = time.perf_counter()
        for _ in range(steps):
            if flat is not None:
                distributed.sum_(flat)
            else:
                engine.train(self.batch)
        wait_for(engine.run.device)
        distributed.largest(0)
        return time.perf_counter() - start


def main(given: str, ways: list[str]) -> None:
    """Answer what is asked on stdin, until it ends."""
    config = TrainConfig(**json.loads(given))
    use_processors()
    device = pick_device(config.device)
    with distributed.joined(device), computing_on(device):
        worker = Worker(replace(config, device=str(device)), ways)
        for line in sys.stdin:
            name, *steps = json.loads(line)
            answer = worker.seconds(name, *steps) if steps else worker.check()
            Console().result(ANSWER + json.dumps(answer), soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
