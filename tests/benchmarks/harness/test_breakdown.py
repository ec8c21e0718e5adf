"""Where a step's time goes: every kind of work has its share."""

import torch

from fastdhm.benchmarks.harness import breakdown
from fastdhm.benchmarks.reference.contender import Engine, make_config, random_batch
from fastdhm.benchmarks.reference.model import Reference
from fastdhm.engine import profile
from fastdhm.engine.build import build_model

CPU = torch.device("cpu")


def test_every_kind_of_a_step_takes_time():
    config = make_config("resnet8", 16, 8, precision="bfloat16", device="cpu", compile="off")
    engine, batch = Engine(config, 10), random_batch(config, 10)
    spent = breakdown.profile_step(lambda: engine.train(batch), CPU)
    assert tuple(spent) == breakdown.KINDS
    assert all(ms > 0 for ms in spent.values())
    reference = Reference(build_model(config, 10), config, CPU)
    image_BCHW = torch.randn(8, 3, 16, 16)
    spent = breakdown.profile_step(lambda: reference.step(image_BCHW, batch.target_B), CPU)
    assert max(spent, key=spent.get) in (profile.CONVOLUTION, profile.OTHER)
    assert spent[profile.LOSS] > 0


def test_matrix_peak_is_plausible():
    assert 1e8 < breakdown.matmul_peak(CPU, torch.float32) < 1e15
