"""The ops as ``torch.ops.fastdhm`` has them, without what is checked in Python: nothing is read out of bounds."""

import pytest
import torch

from fastdhm.ops import _extension, batch_norm_act, conv2d, conv3x3, match_ranks, mimic_loss, shortcut

pytestmark = pytest.mark.skipif(not _extension.available(), reason=str(_extension.reason()))
assert all((batch_norm_act, conv2d, conv3x3, match_ranks, mimic_loss, shortcut))  # importing them registers the ops
F64 = torch.float64


def images(*shape, dtype=F64):
    return torch.ones(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def whole(*values):
    return torch.tensor(values, dtype=torch.int64)


X, W3, V = images(2, 8, 6, 6), images(8, 8, 3, 3), torch.ones(8, dtype=F64)
NCHW, HALF = torch.ones(2, 8, 6, 6, dtype=F64), images(2, 8, 6, 6, dtype=torch.float16)
LOSS = (
    torch.zeros(2, 3, 5),
    whole(0, 1, 2),
    torch.ones(2, 2),
    1.0,
    0.0,
    -100,
    True,
    whole(1, 0, 0),
    torch.ones(3),
    torch.ones(3),
)
RANKS = (torch.zeros(2, 3), whole(0), whole(1), whole(), whole(), whole(), 2)
NORM = (X, V.clone(), V.clone(), V, V, None, 0.1, 1e-5, True)
NORM_BACK = (X, X, X, V, V, V, V, 1e-5, True, True)
SHARED = torch.ones(12, dtype=F64)
HUGE = 2**62
# an op, arguments that it takes, and by place what it has to refuse
CALLS = {
    "mimic_loss": (
        LOSS,
        {0: [torch.zeros(3, 5), torch.zeros(2, 3, 0), torch.zeros(0, 3, 5), torch.zeros(2, 3, 5).long()],
         1: [whole(0, 1), whole(0, 1, 5), whole(0, 1, -1), torch.zeros(3), whole(0, 1, 2)[:, None]],
         2: [torch.ones(3, 3), torch.ones(2), -torch.ones(2, 2), torch.full((2, 2), torch.nan)],
         3: [0.0, -1.0, float("nan"), float("inf")], 4: [-0.1, 1.5, float("nan")],
         7: [None, whole(0, 1), whole(0, 1, 5), torch.zeros(3)],
         8: [None, torch.zeros(2), whole(0, 1, 0), torch.tensor([0, 1.5, 0]), torch.tensor([0, torch.nan, 0])],
         9: [torch.ones(2), whole(1, 1, 1), -torch.ones(3), torch.tensor([1, torch.inf, 1])]},
    ),
    "scale_": ((torch.ones(3), torch.tensor(2.0)), {0: [torch.ones(3).long()], 1: [torch.ones(2), torch.ones(0)]}),
    "branch_mask": (
        (torch.ones(3), 0, torch.tensor(0)),
        {0: [torch.ones(3, 1), torch.ones(3).long()], 2: [whole(0), torch.tensor(0.0)]},
    ),
    "match_ranks": (
        RANKS,
        {0: [torch.zeros(2), torch.zeros(2, 0), torch.zeros(2, 3).long(), torch.zeros(2, 3).half()],
         1: [whole(2), whole(-1), whole(0, 0), torch.zeros(1)], 2: [whole(3), whole(-1), torch.zeros(1)],
         3: [whole(0)], 4: [whole(0)], 5: [whole(3), whole(-1), whole(0)[:, None], torch.zeros(1)], 6: [-1]},
    ),
    "batch_norm_act": (
        NORM,
        {0: [NCHW, HALF, images(1, 8, 1, 1), images(0, 8, 6, 6), V],
         1: [V[:3], V.float(), SHARED[:1].expand(8), V[None]], 2: [V[:3], V.float(), torch.ones(16, dtype=F64)[::2]],
         3: [V[:3], V.float()], 4: [V[:3], V.float()], 5: [NCHW, HALF, X[:1], images(2, 8, 6, 5)]},
    ),
    "batch_norm_act_backward": (
        NORM_BACK,
        {0: [NCHW, HALF, X[:1]], 1: [NCHW, HALF, X[:1]], 2: [NCHW, X[:1], None],
         3: [V[:3]], 4: [V[:3]], 5: [V[:3]], 6: [V.float()], 8: [False]},
    ),
    "shortcut": ((X, 10), {0: [NCHW, HALF, X[0], images(2, 0, 6, 6)], 1: [3, 0, -1]}),
    "shortcut_backward": ((images(2, 10, 3, 3), X), {0: [images(2, 3, 3, 3), images(2, 10, 3, 4), HALF], 1: [NCHW]}),
    "conv3x3": ((X, W3), {0: [NCHW, HALF, images(0, 8, 6, 6), X[0], images(2, 16, 6, 6)],
                          1: [W3.float(), images(8, 8, 3, 2), images(3, 8, 3, 3), images(0, 8, 3, 3), W3[0]]}),
    "conv3x3_input_grad": ((X, W3), {0: [NCHW, images(2, 16, 6, 6)], 1: [images(8, 0, 3, 3), images(8, 3, 3, 3)]}),
    "conv3x3_weight_grad": ((X, X), {0: [NCHW, X[:1], images(2, 3, 6, 6), HALF], 1: [images(2, 8, 6, 5), X[:, :3]]}),
    "conv2d": ((X, W3, [1, 1], [1, 1]), {0: [images(2, 16, 6, 6)], 1: [images(8, 8, 9, 9), W3[0]], 2: [[0, 1]],
                                         3: [[-1, 1]]}),
    "conv2d_input_grad": (
        (images(2, 8, 3, 3), X, W3, [2, 2], [1, 1]),
        {0: [images(2, 8, 3, 4), images(1, 8, 3, 3), images(2, 3, 3, 3), HALF], 1: [X[0], images(2, 16, 6, 6)],
         2: [W3.float(), W3[0], images(8, 8, 0, 3)], 3: [[0, 2], [-1, 2], [HUGE, 2]],
         4: [[-1, 1], [HUGE, 1], [2, 2]]},
    ),
    "conv_weight_grad": (
        (images(2, 8, 3, 3), X, [3, 3], [2, 2], [1, 1]),
        {0: [images(2, 8, 3, 4), images(1, 8, 3, 3), images(2, 3, 3, 3), NCHW], 1: [NCHW, X[:1], images(0, 8, 6, 6)],
         2: [[0, 3], [-3, 3], [HUGE, 3], [9, 9]], 3: [[0, 2], [-1, 2], [HUGE, 2]], 4: [[-1, 1], [3, 1], [HUGE, 1]]},
    ),
}  # fmt: skip
REFUSED = [
    pytest.param(name, place, value, id=f"{name}-{place}-{n}")
    for name, (_, changes) in CALLS.items()
    for place, values in changes.items()
    for n, value in enumerate(values)
]


@pytest.mark.parametrize("name", CALLS)
def test_valid_arguments_are_accepted(name):
    getattr(torch.ops.fastdhm, name)(*CALLS[name][0])


@pytest.mark.parametrize(("name", "place", "value"), REFUSED)
def test_invalid_arguments_are_refused_with_a_message(name, place, value):
    arguments = [*CALLS[name][0]]
    arguments[place] = value
    with pytest.raises((ValueError, RuntimeError)) as error:
        getattr(torch.ops.fastdhm, name)(*arguments)
    assert "internal" not in str(error.value).lower() and len(str(error.value)) > 20


def test_statistics_that_share_memory_are_refused():
    for running_mean, running_var in ((SHARED[:8], SHARED[4:]), (SHARED[:8], SHARED[:8])):
        with pytest.raises(RuntimeError, match="single memory location"):
            torch.ops.fastdhm.batch_norm_act(X, running_mean, running_var, *NORM[3:])
