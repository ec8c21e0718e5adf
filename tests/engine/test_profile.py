"""Where a step's time goes: operations are told apart, and a run writes a trace of the steps that it was asked for."""

import json

import pytest

from fastdhm.cli import main
from fastdhm.engine import profile
from runs import command


@pytest.mark.parametrize(
    ("lineage", "kind"),
    [
        (["aten::mkldnn_convolution", "aten::convolution", "aten::conv2d"], profile.CONVOLUTION),
        (["aten::add_", "autograd::engine::evaluate_function: ConvolutionBackward0"], profile.CONVOLUTION),
        (["aten::native_batch_norm", "aten::batch_norm"], profile.NORM),
        (["aten::threshold_backward", "autograd::engine::evaluate_function: ReluBackward0"], profile.NORM),
        (["fastdhm::mimic_loss"], profile.LOSS),
        (["fastdhm::norm_act"], profile.NORM),
        (["aten::sub", "aten::kl_div"], profile.LOSS),
        (["aten::mul_", "Optimizer.step#SGD.step"], profile.OPTIMIZER),
        (["aten::copy_", "Optimizer.step#SGD.step"], profile.OPTIMIZER),
        (["aten::copy_", "aten::_to_copy", "aten::to", "aten::conv2d"], profile.COPIES),
        (["aten::index_select"], profile.OTHER),
        (["aten::copy_", "aten::index_select", profile.WAIT], profile.WAIT),
        (["record_param_comms", "c10d::allreduce_"], profile.COMMUNICATION),
        (["gloo:all_reduce"], profile.COMMUNICATION),
        (["aten::convolution", "## Call CompiledFxGraph abc ##", "Torch-Compiled Region: 0/0"], profile.CONVOLUTION),
        (
            ["aten::cudnn_convolution", "CompiledFunctionBackward", "evaluate_function: CompiledFunctionBackward"],
            profile.CONVOLUTION,
        ),
        (["triton_poi_fused_convolution_relu_0", "Torch-Compiled Region: 0/0"], profile.NORM),
        (["fastdhm::mimic_loss", "Torch-Compiled Region: 0/0"], profile.LOSS),
        (["aten::empty_strided", "Torch-Compiled Region: 0/0"], profile.NORM),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_kinds(lineage, kind):
    assert profile.kind_of(lineage) == kind


def test_a_run_writes_a_trace_of_its_steps_and_a_table(tmp_path, capsys):
    """Ten steps an epoch: the profile of eight, which would begin behind the fifth, ends with the epoch."""
    assert main(command(tmp_path / "run", "--epochs", "1", "--profile", "8")) == 0
    printed = capsys.readouterr().out
    assert "steps 6 to 10, under the profiler" in printed and str(tmp_path / "run/trace.json") in printed.replace(
        "\n", ""
    )
    for kind in profile.KINDS:
        assert f"│ {kind} " in printed
    events = json.loads((tmp_path / "run/trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert names.count(profile.WAIT) == 6  # the last finds no batch
    assert "aten::convolution" in names or any("conv" in name for name in names)


def test_a_run_that_ends_before_says_that_there_is_no_profile(tmp_path, capsys):
    assert main(command(tmp_path / "run", "--max-steps", "3", "--profile", "2")) == 0
    assert "profile is 2: the run ended before its first step to profile" in capsys.readouterr().out
    assert not (tmp_path / "run/trace.json").exists()
