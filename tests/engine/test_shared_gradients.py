"""Processes that average the gradients of the branches that a step computes learn what one process does."""

import pytest
from many_processes import outputs

STEPS = """
from fastdhm.engine.shared_gradients import SharedGradients
from fastdhm import methods, mimic_loss, models
from fastdhm.engine.fast.fuse import FusedForward
from fastdhm.engine.fast.synced_norm import sync_batch_norms
with d.joined(torch.device("cpu")):
    torch.manual_seed(0)
    model = models.build("resnet8", 10).double().train()
    sync_batch_norms(model, d.group())
    forward, weights = FusedForward(model), methods.weight_matrix("dhm", 3).double()
    def compute(image, target, weights, active):
        return mimic_loss(forward(image, active), target, weights)
    shared = SharedGradients()
    shared.begin({"B0": model.trunk, **model.branches})
    image, target = torch.randn(24, 3, 16, 16).double(), torch.randint(10, (24,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for active in (("B1", "B2"), ("B1",), (), ("B2",), ("B1", "B2")):
        picked = [0, *(int(name[1]) for name in active)]
        total = torch.zeros((), dtype=torch.float64)
        for part in range(2):
            rows = torch.arange(24).view(2, d.count(), -1)[part, d.rank()]
            weights_AA = weights[picked][:, picked]
            call = shared.around(compute, active, last=part == 1)
            loss, _ = call(image[rows], target[rows], weights_AA, active)
            (loss / 2).backward()
            total += loss.detach() / 2 / d.count()
        d.sum_(total)
        for name, branch in model.branches.items():
            assert all((p.grad is None) == (name not in active) for p in branch.parameters())
        optimizer.step()
        optimizer.zero_grad()
        print(total.item(), *(f"{t.double().square().sum():.12g}" for t in (*model.parameters(), *model.buffers())))
"""


@pytest.mark.slow
def test_two_and_three_processes_learn_what_one_does():
    """With batch norms in sync: sampled sets of branches, batches in parts, losses, weights and running statistics."""
    [alone] = outputs(STEPS, 1)
    expected = [[float(word) for word in line.split()] for line in alone.splitlines()]
    for number in (2, 3):
        for out in outputs(STEPS, number):
            found = [[float(word) for word in line.split()] for line in out.splitlines()]
            for one, other in zip(expected, found, strict=True):
                assert other == pytest.approx(one, rel=1e-9)
