"""One optimizer step."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.data.loaders.loader import Batch
from fastdhm.engine.labels import Labelling, Labels
from fastdhm.engine.optim.by_name import make_optimizer
from fastdhm.engine.run import Run
from fastdhm.engine.shared_gradients import SharedGradients
from fastdhm.engine.step import make_compute, make_step
from fastdhm.engine.sums import TrainingSums
from fastdhm.methods import drop_mimicking
from fastdhm.ops.branch_mask import branch_mask


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
        average=None,
        shared=SharedGradients(),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        optimizer=optimizer or torch.optim.SGD(model.parameters(), 0.1),
    )
    return run, make_step(run, make_compute(model, 1.0, 0.0, compiled=False))


@pytest.mark.parametrize("labels", [{}, {"mixup": 0.2}, {"cutmix": 1.0, "class_weights": "auto"}], ids=str)
def test_nothing_in_a_step_waits_for_the_device(labels):
    """Meta tensors have no values: whatever asks for one (``item``, ``tolist``, a branch on a tensor) raises."""
    device = torch.device("meta")
    config = TrainConfig(accumulate=2, clip_grad=1.0, **labels)
    _, step = step_on(device, config)
    labelling = Labelling(config, 10, device)
    with device:
        transform = DeviceTransform((0.5,) * 3, (0.5,) * 3, pad=2, flip=True, seed=1)
        index_B, weights_MM = torch.arange(8), torch.ones(3, 3)
        batch = Batch(torch.zeros(8, 28, 28, 3, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64), index_B)
        keep_S = torch.full((2,), 0.5)
    sums = TrainingSums(("B0", "B1", "B2"), device)
    for number in (1, 2):
        sampled_MM = drop_mimicking(weights_MM, branch_mask(keep_S, 0, number))
        image_BCHW = transform(batch.image_BHWC, batch.index_B, 0)
        values = step(image_BCHW, labelling.label(batch, image_BCHW, 0, number), sampled_MM, ("B1", "B2"))
        sums.add(number, 8, *values, sampled_MM, ("B1", "B2"))
    with pytest.raises((RuntimeError, NotImplementedError)):
        sums.read()  # the log point does wait, which shows that the others did not


@pytest.mark.parametrize("weigh", [False, True], ids=["alike", "weighed"])
def test_parts_of_a_batch_add_up_to_the_batch(weigh):
    """Without batch statistics, the gradient of the whole is the mean over the parts; one of them may weigh nothing."""
    gradients, losses = [], []
    for parts in (1, 4):
        run, step = step_on(torch.device("cpu"), TrainConfig(batch_size=8, accumulate=parts))
        run.model.eval()
        run.optimizer.step = run.optimizer.zero_grad = lambda *_: None
        generator = torch.Generator().manual_seed(1)
        image_BCHW, target_B = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8)
        labels = Labels(target_B, row_weight_B=torch.tensor([0.0, 0, 1, 9, 0.5, 0.5, 2, 3]) if weigh else None)
        loss, terms_MM, _ = step(image_BCHW, labels, torch.ones(3, 3))
        gradients.append([p.grad.clone() for p in run.model.parameters()])
        losses.append(loss)
        torch.testing.assert_close(loss, terms_MM.sum())
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_clipping_bounds_the_whole_gradient():
    run, step = step_on(torch.device("cpu"), TrainConfig(clip_grad=0.01))
    seen = {}
    run.optimizer.step = lambda: seen.update(
        norm=torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()])
    )
    step(torch.randn(8, 3, 16, 16), Labels(torch.arange(8)), torch.ones(3, 3))
    assert seen["norm"].item() == pytest.approx(0.01, rel=1e-3)


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


SAMPLED = {
    "binary": {},
    "bernoulli-step": {"sampler": "bernoulli", "sample_every": "step"},
    "bernoulli-epoch": {"sampler": "bernoulli"},
    "structural-step": {"sampler": "structural"},
    "structural-epoch": {"sampler": "structural", "sample_every": "epoch"},
}


@pytest.mark.parametrize("kind", SAMPLED)
def test_a_sample_depends_on_the_seed_and_the_position_alone(tmp_path, kind):
    """And on the epoch or on the step, whichever the run draws at."""
    config = TrainConfig(arch="resnet8", device="cpu", seed=3, **SAMPLED[kind])
    run, other = Run(config, tmp_path, ("a", "b")), Run(config, tmp_path, ("a", "b"))
    drawn = {}
    for position in range(20):
        if kind.endswith("epoch"):
            run.at.epoch, run.at.step, other.at.epoch = position, 7 * position, position
        else:
            run.at.step = other.at.step = position
            run.at.epoch = position // 5
        active, weights_AA = run.sample()
        again, same_AA = other.sample()
        assert active == again and torch.equal(weights_AA, same_AA)
        assert len(weights_AA) == 1 + len(active) and weights_AA.diagonal().all()
        drawn[active, tuple(weights_AA.flatten().tolist())] = position
    assert len(drawn) == (1 if kind == "binary" else 4)


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "amsgrad", "adamw"])
def test_a_branch_that_is_out_is_neither_computed_nor_changed(optimizer):
    """Not by its decay or its old momentum either; the first step may be without it."""
    run, _ = step_on(torch.device("cpu"), TrainConfig())
    name, _, momentum = optimizer.partition("-")
    run.optimizer = make_optimizer(run.model, name, lr=0.1, weight_decay=0.1, momentum=0.9 if momentum else 0.0)
    step = make_step(run, make_compute(run.model, 1.0, 0.0, compiled=False))
    image_BCHW = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = Labels(torch.arange(8))
    for active in [("B1",), ("B2",), (), ("B1", "B2"), ("B2",)]:
        before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        _, terms_AA, correct_A = step(image_BCHW, labels, torch.ones(1 + len(active), 1 + len(active)), active)
        assert terms_AA.shape == (1 + len(active), 1 + len(active)) and correct_A.shape == (1 + len(active),)
        for part in ("trunk.fc.weight", "branches.B1.fc.weight", "branches.B2.fc.weight"):
            changed = not torch.equal(before[part], run.model.state_dict()[part])
            assert changed == (part.startswith("trunk") or part.split(".")[1] in active)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_every_set_of_branches_compiles_and_computes_as_eager():
    """Twelve pairs of a size and a set in one run: more than torch.compile takes of a function by default."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    branches = {name: models.Branch([nn.Conv2d(4, 4, 3)], 4, 5) for name in ("B1", "B2")}
    model = models.BranchedModel(trunk, branches, dict.fromkeys(branches, "0"))
    sets = [(), ("B1",), ("B2",), ("B1", "B2")]
    eager, compiled = (make_compute(model, 1.0, 0.0, on, variants=len(sets)) for on in (False, True))
    for side in (8, 12, 16):
        image_BCHW = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
        for active in sets:
            arguments = (image_BCHW, torch.arange(4), torch.ones(1 + len(active), 1 + len(active)), active)
            torch.testing.assert_close(compiled(*arguments), eager(*arguments), rtol=1e-3, atol=1e-4)
