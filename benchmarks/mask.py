"""``fastdhm bench mask``: drawing which branches take part, against torch's stateful generators.

Legend: S side branches.

Peers: ``auto``, and every impl of :func:`fastdhm.branch_mask` that is available on the device; ``bernoulli`` and
``rand``, which draw from torch's global generator: other bits, and different ones each time.
"""

from functools import partial

import torch
from torch import Tensor

from fastdhm.benchmarks.harness import report
from fastdhm.benchmarks.harness import timing as harness
from fastdhm.benchmarks.harness.frame import Frame
from fastdhm.benchmarks.harness.timing import Peer
from fastdhm.errors import UserError
from fastdhm.ops.branch_mask import IMPLS, branch_mask

SIDE_BRANCHES = (2, 3, 8, 1000)
SEED = 2**64 - 3
# Checked besides the timed step: both sides of the points where a counter word or its high half begins.
CHECKED_STEPS = (0, 1, 2, 1000, 2**32 - 1, 2**32, 2**63 - 1)
TIMED_STEP = 12345
MARKS = {f"auto over {name}": ("auto", name) for name in ("bernoulli", "rand")}


def bench(frame: Frame) -> int:
    """Time all of it; returns the exit status, 1 if a backend's bits differ from the reference's."""
    with frame.measuring():
        probs_S = torch.full((2,), 0.5, device=frame.device)
        auto_is = harness.name_auto(lambda impl: branch_mask(probs_S, SEED, TIMED_STEP, impl=impl), IMPLS)
        frame.say(f"auto is impl={auto_is!r}; available on {frame.device}: {', '.join(available(frame.device))}")
        comparisons = [frame.compare(f"S={S}", peers(S, frame.device), max_seconds=10) for S in SIDE_BRANCHES]
    frame.plot_bars(comparisons, "Branch mask")
    return frame.conclude(comparisons, marks=report.ratio_marks(comparisons, MARKS), settings={"auto_impl": auto_is})


def available(device: torch.device) -> list[str]:
    """The impls that can be named on ``device``."""
    usable = []
    for impl in IMPLS:
        try:
            branch_mask(torch.full((1,), 0.5, device=device), SEED, 0, impl=impl)
        except UserError:
            continue
        usable.append(impl)
    return usable


def peers(S: int, device: torch.device) -> list[Peer]:
    """``auto`` and the other impls, which must all give the bits of the CPU reference; and torch's generators."""
    probs_S = torch.linspace(0, 1, S)
    expected_S = branch_mask(probs_S, SEED, TIMED_STEP, impl="eager")
    more_S = [branch_mask(probs_S, SEED, step, impl="eager") for step in CHECKED_STEPS]
    on_device_S, step = probs_S.to(device), torch.tensor(TIMED_STEP, device=device)

    def check(impl: str, result: dict[str, Tensor]) -> str | None:
        drawn_S = [branch_mask(on_device_S, SEED, step, impl=impl) for step in CHECKED_STEPS]
        wrong = [step for step, a, b in zip(CHECKED_STEPS, drawn_S, more_S, strict=True) if not torch.equal(a.cpu(), b)]
        if wrong:
            return f"other bits than the reference at step {wrong[0]}"
        return harness.agrees_with({"mask": expected_S})(result)

    def draw(impl: str) -> dict[str, Tensor]:
        return {"mask": branch_mask(on_device_S, SEED, step, impl=impl)}

    ours = [Peer(name=impl, run=partial(draw, impl), check=partial(check, impl)) for impl in available(device)]
    theirs = {
        "bernoulli": lambda: {"mask": torch.bernoulli(on_device_S).bool()},
        "rand": lambda: {"mask": torch.rand(S, device=device) < on_device_S},
    }
    return ours + [Peer(name=name, run=run, check=_drawn) for name, run in theirs.items()]


def _drawn(result: dict[str, Tensor]) -> str | None:
    """What is wrong with a random mask for probabilities from 0 to 1: it must be bool, and never true for 0."""
    mask_S = result["mask"]
    return None if mask_S.dtype == torch.bool and not mask_S[0] else "not a mask of these probabilities"
