"""The reference as a program: ``python -m fastdhm.benchmarks.reference.run LOG STEPS DATASET ARCH METHOD DEVICE``.

``bench startup`` runs it besides ``fastdhm train``: imports, data, network, then steps with a line of JSON each.

Legend: B batch, C channels, H height, W width.
"""

import json
import sys
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from fastdhm.benchmarks.harness.machine import wait_for
from fastdhm.benchmarks.reference.data import training_loader
from fastdhm.benchmarks.reference.model import Reference
from fastdhm.config import TrainConfig
from fastdhm.engine.build import build_model
from fastdhm.engine.device import pick_device, pick_workers
from fastdhm.recipes import recipe
from fastdhm.system.paths import default_data_dir


def main(log: Path, steps: int, dataset: str, arch: str, method: str, device_name: str) -> None:
    """Train ``steps`` steps by the recipe, a row in ``log`` for each."""
    config = TrainConfig(**recipe(dataset, arch, method) | {"data_dir": default_data_dir(), "device": device_name})
    device = pick_device(config.device)
    loader = training_loader(config, pick_workers(config.workers, device))
    images: Any = loader.dataset
    classes = len(getattr(images, "classes", ())) or max(images.targets) + 1
    reference = Reference(build_model(config, classes), config, device)
    epochs = chain.from_iterable(repeat(loader))
    with open(log, "w", buffering=1, encoding="utf-8") as file:
        for number, (image_BCHW, target_B) in enumerate(islice(epochs, steps), 1):
            loss = reference.loss(reference.step(image_BCHW, target_B))
            wait_for(device)
            file.write(json.dumps({"kind": "step", "step": number, "loss": loss}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
