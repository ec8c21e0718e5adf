"""The eager reference: its loss is ours, its network is ours, and nothing of ours computes in it.

Legend: M branches, B batch, K classes.
"""

import math

import pytest
import torch

from fastdhm import models
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.reference.contender import make_config
from fastdhm.benchmarks.reference.model import Network, Reference, accuracy, mimicking
from fastdhm.methods import weight_matrix
from fastdhm.ops.mimic_loss import mimic_loss

CPU = torch.device("cpu")
K = 7


def images(batch=4, side=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, side, side, generator=generator), torch.randint(K, (batch,), generator=generator)


def reference(method="dhm", **given):
    torch.manual_seed(0)
    config = make_config("resnet8", 16, 4, method=method, device="cpu", **given)
    return Reference(models.build("resnet8", K, () if method == "baseline" else None), config, CPU)


@pytest.mark.parametrize("arch", ["resnet8", "densenet-40-12", "mobilenet"])
def test_network_gives_the_models_logits(arch):
    model = models.build(arch, K).eval()
    image_BCHW, _ = images(2, 32)
    expected_MBK = model(image_BCHW)
    torch.testing.assert_close(torch.stack(Network(model).eval()(image_BCHW)), expected_MBK, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["dhm", "dsl"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_terms_are_those_of_the_op(method, temperature):
    generator = torch.Generator().manual_seed(2)
    logits_MBK = 3 * torch.randn(3, 5, K, generator=generator, dtype=torch.float64)
    target_B = torch.randint(K, (5,), generator=generator)
    trainer = reference(method, temperature=temperature, label_smoothing=0.1)
    _, terms_MM = mimic_loss(
        logits_MBK, target_B, weight_matrix(method, 3), temperature=temperature, label_smoothing=0.1, impl="eager"
    )
    terms = trainer.terms(list(logits_MBK), target_B)
    assert terms.keys() == (
        {(p, q) for p in range(3) for q in range(3)} if method == "dhm" else {(m, m) for m in range(3)}
    )
    for (p, q), term in terms.items():
        assert term.item() == pytest.approx(terms_MM[p, q].item(), rel=1e-12)


def test_teacher_gets_no_gradient():
    teacher_BK, student_BK = (torch.randn(4, K, requires_grad=True) for _ in range(2))
    mimicking(teacher_BK, student_BK, 1.0, 0.0).backward()
    assert teacher_BK.grad is None
    assert student_BK.grad.norm() > 0


def test_released_smoothing_is_the_formula():
    teacher_BK, student_BK = (30 * torch.randn(4, K, dtype=torch.float64) for _ in range(2))
    p_BK, q_BK = ((z_BK.softmax(1) + 1e-8) / (1 + K * 1e-8) for z_BK in (teacher_BK, student_BK))
    expected = (p_BK * (p_BK / q_BK).log()).sum() / 4
    assert mimicking(teacher_BK, student_BK, 1.0, 1e-8).item() == pytest.approx(expected.item(), rel=1e-12)
    assert mimicking(teacher_BK, student_BK, 1.0, 0.0).item() > 1.01 * expected.item()


def test_a_step_reads_fifteen_numbers_and_learns():
    trainer, (image_BCHW, target_B) = reference(), images()
    first = trainer.step(image_BCHW, target_B)
    assert len(first) == 15
    for _ in range(5):
        last = trainer.step(image_BCHW, target_B)
    assert sum(v for name, v in last.items() if "->" in name) < sum(v for name, v in first.items() if "->" in name)
    assert all(math.isfinite(value) for value in last.values())


def test_a_ramp_scales_only_the_mimicking_terms():
    (image_BCHW, target_B), trained = images(), []
    for method, scale in (("dhm", 0.0), ("dsl", 1.0), ("dhm", 1.0)):
        trainer = reference(method)
        trainer.step(image_BCHW, target_B, scale)
        trained.append(trainer.network.trunk.fc.weight.detach())
    torch.testing.assert_close(trained[0], trained[1])
    assert not torch.allclose(trained[0], trained[2])


def test_no_op_of_ours_takes_part():
    trainer, (image_BCHW, target_B) = reference(), images()
    ops = harness.ops_called(lambda: trainer.step(image_BCHW, target_B))
    assert "aten::convolution" in ops
    assert not [name for name in ops if name.startswith("fastdhm::")]


def test_accuracy_in_percent():
    logits_BK = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
    target_B = torch.tensor([0, 1, 0, 2])
    assert accuracy(logits_BK, target_B, 1).item() == 25
    assert accuracy(logits_BK, target_B, 2).item() == 75
    assert accuracy(logits_BK, target_B, 5).item() == 100
