"""Classes split over processes: loss, terms, counts and gradients are those of one process that has all.

Most tests run a group of threads, each with a gloo of its own; the slow ones run processes.

Legend: M branches, B rows, K classes, D features, of each branch its own number; R processes (ranks).
"""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from heads import case, labels, outcome
from many_processes import outputs
from torch.utils._python_dispatch import TorchDispatchMode

from fastdhm.errors import UserError
from fastdhm.ops._process_group import Group
from fastdhm.ops.class_parallel import class_parallel_mimic_loss
from fastdhm.ops.linear_mimic_loss import linear_mimic_loss, linear_mimic_loss_eager

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
WAIT = timedelta(seconds=20)


@pytest.fixture(scope="module")
def together():
    """``together(number, work)``: what ``work(rank, group)`` returns or raises in each thread of a group of so many.

    The groups last as long as the module: in torch 2.6, one that goes just after its last message can hang.
    """
    groups, c10d = {}, torch._C._distributed_c10d

    def member(store, rank, number):
        group = dist.ProcessGroup(store, rank, number)
        gloo = dist.ProcessGroupGloo(store, rank, number, WAIT)
        group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        group._set_group_name(f"thread {rank} of {number}")
        c10d._register_process_group(group.group_name, group)
        return group

    def together(number, work):
        def result(rank):
            try:
                return work(rank, groups[number][rank].group_name)
            except (ValueError, RuntimeError) as error:
                return error

        with ThreadPoolExecutor(number) as threads:
            if number not in groups:
                store = dist.HashStore()
                groups[number] = [*threads.map(lambda rank: member(store, rank, number), range(number))]
            return [*threads.map(result, range(number))]

    yield together
    for group in itertools.chain(*groups.values()):
        c10d._unregister_process_group(group.group_name)


def share_of(rank, rows, classes, heads, target_B, more):
    """A process's rows and classes, when each has so many."""
    (features, weights, bias) = heads
    own_rows, own_classes = (slice(sum(sizes[:rank]), sum(sizes[: rank + 1])) for sizes in (rows, classes))
    own = [[x[own_rows] for x in features], [x[own_classes] for x in weights], [x[own_classes] for x in bias]]
    more = {
        name: tuple(x[own_rows] for x in value) if name == "mix" else value[own_rows] for name, value in more.items()
    }
    return own, target_B[own_rows], more


def joined(results):
    """What the processes found as one process has it; that all have the same loss and terms is checked."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    (loss, terms, _), *others = results
    for other in others:
        torch.testing.assert_close(other[:2], (loss, terms), rtol=0, atol=0, equal_nan=True)
    return loss, terms, [torch.cat(parts) for parts in zip(*(grads for *_, grads in results), strict=True)]


def together_on(together, rows, classes, heads, target_B, weights_MM, more=None, **options):
    def work(rank, group):
        own, own_B, own_more = share_of(rank, rows, classes, heads, target_B, more or {})
        return outcome(class_parallel_mimic_loss, own, own_B, weights_MM, group=group, **own_more, **options)

    return joined(together(len(rows), work))


SPLITS = {"even": ([4, 4], [9, 9]), "uneven": ([5, 3], [1, 17]), "three": ([0, 1, 7], [6, 2, 10])}
exactly = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize(
    ("temperature", "smoothing", "chunk_mib", "named"),
    [(1.0, 0.0, None, ()), (2.0, 0.1, 0.004, ("mix", "row_weight_B")), (0.5, 0.0, 0.004, ("row_weight_B",))],
    ids=["plain", "all", "weighted"],
)
def test_it_is_one_process(together, split, M, temperature, smoothing, chunk_mib, named):
    """Rows without a label, weights of 0, widths of 1, classes in one chunk and in several."""
    rows, classes = SPLITS[split]
    heads, (target_B, weights_MM, more) = case(M, 8, 18, bias=M > 1), labels(M, 8, 18)
    more = {name: more[name] for name in named}
    options = {"temperature": temperature, "label_smoothing": smoothing, "count_correct": True}
    expected = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM, **options, **more)
    found = together_on(together, rows, classes, heads, target_B, weights_MM, more, chunk_mib=chunk_mib, **options)
    torch.testing.assert_close(found, expected, **exactly)


def test_a_group_of_one_and_no_group(together):
    heads, (target_B, weights_MM, more) = case(2, 6, 11), labels(2, 6, 11)
    expected = outcome(linear_mimic_loss, heads, target_B, weights_MM, **more)
    found = together_on(together, [6], [11], heads, target_B, weights_MM, more)
    torch.testing.assert_close(found, expected, **exactly)
    alone = outcome(class_parallel_mimic_loss, heads, target_B, weights_MM, group="", **more)
    torch.testing.assert_close(alone, expected, rtol=0, atol=0)


def test_of_equal_logits_the_first_class_of_all_processes_counts(together):
    heads, target_B = [[x.round() for x in values] for values in case(2, 6, 9)], torch.tensor([0, 1, 4, 4, 8, -100])
    heads[0][0][:], heads[2][0][:] = 0, 1  # all classes of B0 are equal
    heads[1][1][[2, 7]], heads[2][1][[2, 4, 7]] = heads[1][1][4].clone(), 9  # of B1 these three
    heads[0][1][1] = torch.nan
    options = {"count_correct": True}
    expected = linear_mimic_loss(*heads, target_B, torch.ones(2, 2), impl="eager", **options)[2]
    for classes in ([4, 5], [5, 4], [1, 8]):
        found = together_on(together, [3, 3], classes, heads, target_B, torch.ones(2, 2), **options)
        assert found[1][1].tolist() == expected.tolist() and expected[0] == 1


def test_excluded_classes_are_those_of_eager(together):
    """A bias of -inf excludes a class, here all of a process's, or of both."""
    heads, (target_B, weights_MM, _) = case(3, 6, 12), labels(3, 6, 12)
    heads[2][0][3], heads[2][1][:4], heads[2][2][8:] = -torch.inf, -torch.inf, -torch.inf
    expected = outcome(linear_mimic_loss_eager, heads, target_B % 8, weights_MM)
    found = together_on(together, [3, 3], [4, 8], heads, target_B % 8, weights_MM)
    assert expected[1].isinf().any()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("broken", ["features", "weights"])
def test_nan_spreads_by_its_weights_only(together, broken):
    """Whatever its process's place, and not at all from a branch without weight."""
    heads, (target_B, weights_MM, _) = case(3, 7, 13), labels(3, 7, 13)
    heads[0 if broken == "features" else 1][1][5] = torch.nan
    target_B[5] = 3
    for weights in (torch.eye(3), weights_MM):
        expected = outcome(linear_mimic_loss_eager, heads, target_B, weights)
        found = together_on(together, [4, 3], [5, 8], heads, target_B, weights)
        torch.testing.assert_close(found[:2], expected[:2], equal_nan=True)
        for ours, right in zip(found[2], expected[2], strict=True):
            assert not (ours.isfinite() & ~right.isfinite()).any()
    weights_MM[1], weights_MM[:, 1] = 0, 0
    expected = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM)
    found = together_on(together, [4, 3], [5, 8], heads, target_B, weights_MM)
    torch.testing.assert_close(found, expected)


def test_rows_without_labels_keep_their_mimicking(together):
    heads, (target_B, weights_MM, _) = case(2, 7, 9), labels(2, 7, 9)
    target_B[:4] = -100  # no label in a process
    for targets in (target_B, torch.full_like(target_B, -100)):
        expected = outcome(linear_mimic_loss_eager, heads, targets, weights_MM)
        torch.testing.assert_close(together_on(together, [4, 3], [5, 4], heads, targets, weights_MM), expected)


def test_an_empty_batch_has_no_mean(together):
    heads, target_B = case(2, 0, 5, F32), torch.zeros(0, dtype=torch.int64)
    loss, terms_MM, grads = together_on(together, [0, 0], [2, 3], heads, target_B, torch.ones(2, 2))
    assert loss.isnan() and terms_MM.isnan().all() and all((grad == 0).all() for grad in grads)


def test_autocast_loses_no_more_than_one_process(together):
    heads, (target_B, weights_MM, _) = case(3, 9, 420, F32), labels(3, 9, 420)
    exact = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM)

    def half(*args, **options):
        with torch.autocast("cpu", BF16):
            loss = linear_mimic_loss if "group" not in options else class_parallel_mimic_loss
            return loss(*args, **options)

    def work(rank, group):
        own, own_B, _ = share_of(rank, [5, 4], [20, 400], heads, target_B, {})
        return outcome(half, own, own_B, weights_MM, group=group)

    ours, one = joined(together(2, work)), outcome(half, heads, target_B, weights_MM)
    assert all(grad.dtype == F32 for grad in ours[2])
    for a, b, truth in zip(*([r[0], r[1], *r[2]] for r in (ours, one, exact)), strict=True):
        assert (a - truth).abs().max() <= 2 * (b - truth).abs().max() + 1e-3 * truth.abs().max()


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_narrow_inputs_have_gradients_of_their_type(together, dtype):
    heads, (target_B, weights_MM, _) = case(2, 6, 30, dtype), labels(2, 6, 30)
    wide = [[x.double() for x in values] for values in heads]
    exact = outcome(linear_mimic_loss_eager, wide, target_B, weights_MM)
    ours = together_on(together, [3, 3], [10, 20], heads, target_B, weights_MM)
    eager = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM)
    assert all(grad.dtype == dtype for grad in ours[2])
    for a, b, truth in zip(*([r[0], r[1], *r[2]] for r in (ours, eager, exact)), strict=True):
        lost, size = (b.double() - truth).abs().max(), truth.abs().max()
        assert (a.double() - truth).abs().max() <= 4 * (lost + torch.finfo(dtype).eps * size)


class Messages(TorchDispatchMode):
    """The bytes that this thread gives to each collective."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "_c10d_functional" and "wait" not in func.name():
            self.sent.append(args[0].nbytes)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("need_grad", [True, False])
def test_nothing_of_the_size_of_the_classes_is_sent(together, need_grad):
    M, rows, D, all_sent = 3, 4, 5, []
    for K in (50, 5000):
        features, weights = ([torch.randn(n, D, requires_grad=need_grad) for _ in range(M)] for n in (rows, K // 2))
        target_B, weights_MM, _ = labels(M, rows, K)
        more = {"row_weight_B": torch.ones(rows), "temperature": 2.0, "count_correct": True}
        given = (features, weights, None, target_B, weights_MM)

        def work(rank, group, given=given, more=more):
            with Messages() as messages:
                class_parallel_mimic_loss(*given, group=group, **more)
            return messages.sent

        sent, other = together(2, work)
        assert sent == other
        all_sent.append(sent)
    assert all_sent[0] == all_sent[1]
    number = M * 2 * rows * 4  # of each branch and row of both processes, in float32
    expected = [16 * 8, 2 * rows * 8, rows * M * D * 4, number, number, number, 2 * number, M * M * 8]
    assert all_sent[0] == expected + [2 * rows * M * D * 4] * need_grad


def test_what_needs_no_gradient_gets_none(together):
    (features, weights, bias), (target_B, weights_MM, _) = case(2, 6, 10), labels(2, 6, 10)
    expected = outcome(linear_mimic_loss_eager, (features, weights, bias), target_B, weights_MM)[2]

    def work(rank, group):
        rows, classes = slice(3 * rank, 3 * rank + 3), slice(5 * rank, 5 * rank + 5)
        own = [[x[part].clone() for x in values] for values, part in ((features, rows), (weights, classes))]
        given = (*own, [x[classes] for x in bias], target_B[rows], weights_MM)
        own[0][1].requires_grad_()
        if rank == 1:
            own[1][0].requires_grad_()  # the heads are the process's own
        loss, terms_MM = class_parallel_mimic_loss(*given, group=group)
        (-2.5 * loss).backward()
        with torch.no_grad():
            again, _ = class_parallel_mimic_loss(*given, group=group)
        assert not terms_MM.requires_grad and not again.requires_grad and torch.equal(again, loss)
        assert own[0][0].grad is None and own[1][1].grad is None and (own[1][0].grad is None) == (rank == 0)
        torch.testing.assert_close(own[0][1].grad, -2.5 * expected[1][rows])
        if rank == 1:
            torch.testing.assert_close(own[1][0].grad, -2.5 * expected[2][classes])
        return "done"

    assert together(2, work) == ["done"] * 2


def test_there_is_one_backward_pass_and_no_second_derivative(together):
    heads, (target_B, weights_MM, _) = case(2, 4, 6), labels(2, 4, 6)

    def work(rank, group):
        own, own_B, _ = share_of(rank, [2, 2], [3, 3], heads, target_B, {})
        own = [[x.clone().requires_grad_() for x in values] for values in own]
        loss, _ = class_parallel_mimic_loss(*own, own_B, weights_MM, group=group)
        (grad,) = torch.autograd.grad(loss**2, own[0][:1], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
        with pytest.raises(RuntimeError, match="one backward pass: call it again"):
            loss.backward()
        return "done"

    assert together(2, work) == ["done"] * 2


@pytest.mark.slow
def test_between_compiled_functions(together):
    """A compiler leaves the call as it is."""
    heads, (target_B, weights_MM, _) = case(2, 6, 11), labels(2, 6, 11)

    @torch.compile(backend="aot_eager")
    def compiled(features, *args, **options):
        return class_parallel_mimic_loss([2 * x for x in features], *args, **options)

    own = outcome(lambda x, *a: linear_mimic_loss_eager([2 * t for t in x], *a), heads, target_B, weights_MM)
    found = together(1, lambda rank, group: outcome(compiled, heads, target_B, weights_MM, group=group))
    torch.testing.assert_close(joined(found), own)


GIVEN = {
    "features": [torch.zeros(4, 3)] * 2,
    "weights": [torch.zeros(5, 3)] * 2,
    "bias": None,
    "target_B": torch.zeros(4, dtype=torch.int64),
    "weights_MM": torch.ones(2, 2),
}
THREE = {
    "features": [torch.zeros(4, 3)] * 3, "weights": [torch.zeros(5, 3)] * 3, "weights_MM": torch.ones(3, 3),
}  # fmt: skip


WRONG = [
    (THREE, r"^processes 0 and 1 of the group differ in number of branches \(here: [23]\): all must have the same$"),
    (
        {"features": [torch.zeros(4, 2)] * 2, "weights": [torch.zeros(5, 2)] * 2},
        r"in widths .* \(here: \[[23], [23]\]\)",
    ),
    (
        {"features": [torch.zeros(4, 3).half()] * 2, "weights": [torch.zeros(5, 3).half()] * 2},
        "in type of the",
    ),
    ({"features": [torch.zeros(4, 3, requires_grad=True)] * 2}, r"in features that need a gradient"),
    ({"bias": [torch.zeros(5)] * 2}, "in bias given"),
    ({"mix": (torch.zeros(4).long(), torch.zeros(4))}, "in mix given"),
    ({"row_weight_B": torch.ones(4)}, "in row_weight_B given"),
    ({"temperature": 2.0}, r"in temperature \(here: [12].0\)"),
    ({"label_smoothing": 0.1}, "in label_smoothing"),
    ({"ignore_index": 3}, "in ignore_index"),
    ({"chunk_mib": 3}, "in chunk_mib"),
    ({"count_correct": True}, "in count_correct"),
    ({"weights_MM": torch.tensor([[1.0, 1], [0, 1]])}, "in weights_MM: all"),
    ({"target_B": torch.tensor([0, 10, 0, 0])}, r"target_B holds 10: needs a class in \[0, 10\)"),
]
OWN = [
    ({"weights": [torch.zeros(5, 2)] * 2}, r"weights\[0\] has shape \(5, 2\)"),
    ({"weights": [torch.zeros(0, 3)] * 2}, "at least one branch and one class"),
    ({"target_B": None}, "target_B is a NoneType"),
    ({"temperature": 0.0}, "temperature is 0.0"),
]


def test_what_is_wrong_is_refused_in_every_process(together):
    """What differs, in all with the same words; a mistake of one process's own, in the others with its number."""

    def work(rank, group):
        for changes, message in (*WRONG, *OWN):
            if not rank and any(changes is own for own, _ in OWN):
                message = "process 1 of the group cannot take what it was given: it says why"
            with pytest.raises(UserError, match=message):
                class_parallel_mimic_loss(**(GIVEN | (changes if rank else {})), group=group)
        return "done"

    assert together(2, work) == ["done"] * 2


@pytest.mark.parametrize("group", ["of nobody", None, 3])
def test_a_group_that_is_not_there_is_named(group):
    with pytest.raises(ValueError, match=f"group is {group!r}: there is no such group of processes"):
        class_parallel_mimic_loss(**GIVEN, group=group)
    with pytest.raises(ValueError, match="group_name"):
        Group("")


REAL = """
import itertools
from torch import nn
from heads import case, labels, outcome
from fastdhm.ops.class_parallel import class_parallel_mimic_loss
from fastdhm.ops.linear_mimic_loss import linear_mimic_loss_eager

with d.joined("cpu"):
    rows, classes = {2: ([5, 3], [4, 17]), 3: ([0, 1, 7], [6, 2, 13])}[d.count()]
    own, here = (slice(sum(n[:d.rank()]), sum(n[:d.rank() + 1])) for n in (rows, classes))
    for M, temperature, smoothing, kinds in itertools.product(
        (1, 3), (1.0, 2.0), (0.0, 0.1), ((), ("mix",), ("mix", "row_weight_B"))
    ):
        heads, (target_B, weights_MM, more) = case(M, 8, 21), labels(M, 8, 21)
        options = {"temperature": temperature, "label_smoothing": smoothing, "count_correct": True}
        every = {"mix": more["mix"], "row_weight_B": more["row_weight_B"]}
        cut = {"mix": tuple(x[own] for x in more["mix"]), "row_weight_B": more["row_weight_B"][own]}
        every, cut = ({kind: given[kind] for kind in kinds} for given in (every, cut))
        expected = outcome(linear_mimic_loss_eager, heads, target_B, weights_MM, **options, **every)
        parts = [[x[part] for x in values] for values, part in zip(heads, (own, here, here))]
        found = outcome(
            class_parallel_mimic_loss, parts, target_B[own], weights_MM, group=d.group(), **options, **cut
        )
        grads = [x[own if n < M else here] for n, x in enumerate(expected[2])]
        torch.testing.assert_close(found, (*expected[:2], grads), rtol=1e-10, atol=1e-10)

    if d.count() == 2:  # a network before it, in DistributedDataParallel, as the docstring says
        (features, weights, bias), (target_B, weights_MM, _) = case(2, 8, 21), labels(2, 8, 21)
        torch.manual_seed(0)
        alone, image = nn.Linear(6, features[0].shape[1] + features[1].shape[1]).double(), torch.randn(8, 6).double()
        widths = [x.shape[1] for x in features]
        linear_mimic_loss_eager(alone(image).split(widths, 1), weights, bias, target_B, weights_MM)[0].backward()
        expected, alone.weight.grad, alone.bias.grad = alone.weight.grad, None, None
        shared = nn.parallel.DistributedDataParallel(alone)
        x = shared(image[own]).split(widths, 1)
        for x_BD in x:
            x_BD.register_hook(lambda grad: grad * d.count())
        parts = [[w[here] for w in weights], [b[here] for b in bias]]
        class_parallel_mimic_loss(x, *parts, target_B[own], weights_MM, group=d.group())[0].backward()
        torch.testing.assert_close(alone.weight.grad, expected, rtol=1e-10, atol=1e-10)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_real_processes(number):
    helpers = str(Path(__file__).parents[1] / "helpers")
    outputs(REAL, number, PYTHONPATH=os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")]))
