"""Where a step's time goes: operations are told apart, and shares add up."""

import pytest
import torch

from fastdhm.benchmarks.harness import breakdown
from fastdhm.benchmarks.harness.breakdown import kind_of
from fastdhm.benchmarks.reference.contender import Engine, make_config, random_batch
from fastdhm.benchmarks.reference.model import Reference
from fastdhm.engine.build import build_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("lineage", "kind"),
    [
        (["aten::mkldnn_convolution", "aten::convolution", "aten::conv2d"], breakdown.CONVOLUTION),
        (["aten::add_", "autograd::engine::evaluate_function: ConvolutionBackward0"], breakdown.CONVOLUTION),
        (["aten::native_batch_norm", "aten::batch_norm"], breakdown.NORM),
        (["aten::threshold_backward", "autograd::engine::evaluate_function: ReluBackward0"], breakdown.NORM),
        (["fastdhm::mimic_loss"], breakdown.LOSS),
        (["fastdhm::norm_act"], breakdown.NORM),
        (["aten::sub", "aten::kl_div"], breakdown.LOSS),
        (["aten::mul_", "Optimizer.step#SGD.step"], breakdown.OPTIMIZER),
        (["aten::copy_", "Optimizer.step#SGD.step"], breakdown.OPTIMIZER),
        (["aten::copy_", "aten::_to_copy", "aten::to", "aten::conv2d"], breakdown.COPIES),
        (["aten::index_select"], breakdown.OTHER),
        (["aten::convolution", "## Call CompiledFxGraph abc ##", "Torch-Compiled Region: 0/0"], breakdown.CONVOLUTION),
        (
            ["aten::cudnn_convolution", "CompiledFunctionBackward", "evaluate_function: CompiledFunctionBackward"],
            breakdown.CONVOLUTION,
        ),
        (["triton_poi_fused_convolution_relu_0", "Torch-Compiled Region: 0/0"], breakdown.NORM),
        (["fastdhm::mimic_loss", "Torch-Compiled Region: 0/0"], breakdown.LOSS),
        (["aten::empty_strided", "Torch-Compiled Region: 0/0"], breakdown.NORM),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_kinds(lineage, kind):
    assert kind_of(lineage) == kind


def test_every_kind_of_a_step_takes_time():
    config = make_config("resnet8", 16, 8, precision="bfloat16", device="cpu", compile="off")
    engine, batch = Engine(config, 10), random_batch(config, 10)
    spent = breakdown.profile_step(lambda: engine.train(batch), CPU)
    assert tuple(spent) == breakdown.KINDS
    assert all(ms > 0 for ms in spent.values())
    reference = Reference(build_model(config, 10), config, CPU)
    image_BCHW = torch.randn(8, 3, 16, 16)
    spent = breakdown.profile_step(lambda: reference.step(image_BCHW, batch.target_B), CPU)
    assert max(spent, key=spent.get) in (breakdown.CONVOLUTION, breakdown.OTHER)
    assert spent[breakdown.LOSS] > 0


def test_matrix_peak_is_plausible():
    assert 1e8 < breakdown.matmul_peak(CPU, torch.float32) < 1e15
