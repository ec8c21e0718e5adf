"""What the processes of a run find out when they meet, at a store in this process."""

import json

import pytest
from torch.distributed import HashStore

from fastdhm.errors import UserError
from fastdhm.system import meeting
from fastdhm.system.place import Place


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setenv("FASTDHM_WAIT_SECONDS", "0.3")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(meeting, "SAY_S", 0)
    monkeypatch.setattr(meeting, "MOMENT_S", 0.2)
    return HashStore()


def at(rank, count=2):
    return Place(rank, count, rank, count, "localhost", 29500)


def come(store, *gpus, torch=("2.9",), mistakes=()):
    for rank, gpu in enumerate(gpus):
        mistake = UserError("lr is x") if rank in mistakes else None
        meeting.come(store, at(rank, len(gpus)), torch[rank % len(torch)], gpu, mistake)


def test_all_have_come(store):
    come(store, None, None)
    meeting.meet(store, at(0))
    meeting.meet(store, at(1))


def test_who_has_not_come_is_said(store):
    meeting.come(store, at(0, 4), "2.9", None)
    with pytest.raises(UserError, match="missing at localhost:29500: 1, 2, 3. They may"):
        meeting.meet(store, at(0, 4))


def test_a_number_is_had_once(store):
    come(store, None, None)
    store.set("come/1", json.dumps({"host": "gpu07"}))
    with pytest.raises(UserError, match="process 1 of the run at localhost:29500 is on gpu07 already"):
        meeting.come(store, at(1), "2.9", None)


@pytest.mark.parametrize(
    ("gpus", "torch", "said"),
    [
        (("a", "a"), ("2.9",), "processes 0 and 1 on .* have the same GPU"),
        ((None, None), ("2.9", "2.8"), "process 1 on .* has torch 2.8, and process 0 on .* has 2.9"),
        ((None, "a"), ("2.9",), "has device cuda, and process 0 on .* has cpu"),
    ],
    ids=["one GPU", "two versions", "two devices"],
)
def test_what_does_not_fit_together_is_said_to_all(store, gpus, torch, said):
    come(store, *gpus, torch=torch)
    for rank in range(2):
        with pytest.raises(UserError, match=said):
            meeting.meet(store, at(rank))


def test_gpus_of_their_own_and_unknown_ones_are_fine(store):
    come(store, "a", "b", "", "")
    meeting.meet(store, at(0, 4))


def test_a_mistake_of_one_ends_all_and_is_said_by_it(store):
    come(store, None, None, mistakes=(1,))
    with pytest.raises(UserError) as first:
        meeting.meet(store, at(0))
    with pytest.raises(UserError, match="lr is x") as second:
        meeting.meet(store, at(1), UserError("lr is x"))
    assert first.value.said == 2 and not hasattr(second.value, "said")
    assert second.value.by.startswith("process 1 of 2 on ")


def test_the_first_difference_is_named():
    found = [{"host": host, "alike": {"lr": 0.1, "train": {"count": count}}} for host, count in (("a", 5), ("b", 6))]
    assert meeting.difference(found[:1] * 2) == ""
    said = "process 1 on b has images of train {'count': 6}, and process 0 on a has {'count': 5}: "
    assert meeting.difference(found, "images of ").startswith(said)
