"""One optimizer step."""

from types import SimpleNamespace

import pytest
import torch

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.data.transforms import DeviceTransform
from fastdhm.engine.record import TrainingSums
from fastdhm.engine.run import Run, make_compute, make_optimizer, make_step


def step_on(device, config, optimizer=None):
    """A step of a small DHM network, as the loop makes it."""
    torch.manual_seed(0)
    with device:
        model = models.build("resnet8", 10)
    run = SimpleNamespace(
        config=config,
        device=device,
        precision=torch.float32,
        model=model,
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        optimizer=optimizer or torch.optim.SGD(model.parameters(), 0.1),
    )
    return run, make_step(run, make_compute(model, 1.0, 0.0, compiled=False))


def test_nothing_in_a_step_waits_for_the_device():
    """Meta tensors have no values: whatever asks for one (``item``, ``tolist``, a branch on a tensor) raises."""
    device = torch.device("meta")
    _, step = step_on(device, TrainConfig(accumulate=2, clip_grad=1.0))
    with device:
        transform = DeviceTransform((0.5,) * 3, (0.5,) * 3, pad=2, flip=True, seed=1)
        image_BHWC, index_B = torch.zeros(8, 28, 28, 3, dtype=torch.uint8), torch.arange(8)
        target_B, weights_MM = torch.zeros(8, dtype=torch.int64), torch.ones(3, 3)
    sums = TrainingSums(("B0", "B1", "B2"), device)
    for number in (1, 2):
        sums.add(number, 8, *step(transform(image_BHWC, index_B, 0), target_B, weights_MM))
    with pytest.raises((RuntimeError, NotImplementedError)):
        sums.read()  # the log point does wait, which shows that the others did not


def test_parts_of_a_batch_add_up_to_the_batch():
    """Without batch statistics, the gradient of the whole is the mean over the parts."""
    gradients = []
    for parts in (1, 4):
        run, step = step_on(torch.device("cpu"), TrainConfig(batch_size=8, accumulate=parts))
        run.model.eval()
        run.optimizer.step = run.optimizer.zero_grad = lambda *_: None
        generator = torch.Generator().manual_seed(1)
        image_BCHW, target_B = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8)
        loss, terms_MM, _ = step(image_BCHW, target_B, torch.ones(3, 3))
        gradients.append([p.grad.clone() for p in run.model.parameters()])
        torch.testing.assert_close(loss, terms_MM.sum())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_clipping_bounds_the_whole_gradient():
    run, step = step_on(torch.device("cpu"), TrainConfig(clip_grad=0.01))
    seen = {}
    run.optimizer.step = lambda: seen.update(
        norm=torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()])
    )
    step(torch.randn(8, 3, 16, 16), torch.arange(8), torch.ones(3, 3))
    assert seen["norm"].item() == pytest.approx(0.01, rel=1e-3)


def test_norm_and_bias_can_be_spared_the_decay():
    model = models.build("resnet8", 10)
    (everything,) = make_optimizer(model, 0.1, 0.9, 1e-4, False, True).param_groups
    assert everything["weight_decay"] == 1e-4
    decayed, spared = make_optimizer(model, 0.1, 0.9, 1e-4, False, False).param_groups
    assert spared["weight_decay"] == 0 and {p.ndim for p in spared["params"]} == {1}
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert len(decayed["params"]) + len(spared["params"]) == len(everything["params"])


def test_a_checkpoint_with_a_broken_weight_is_not_written(tmp_path):
    """The loss of the step that breaks the weights is still finite."""
    run = Run(TrainConfig(arch="resnet8", device="cpu"), tmp_path, ("a", "b"))
    run.save()
    before = (tmp_path / "last.pt").read_bytes()
    with torch.no_grad():
        run.model.trunk.fc.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="a weight is not finite after step 0"):
        run.save()
    assert (tmp_path / "last.pt").read_bytes() == before
