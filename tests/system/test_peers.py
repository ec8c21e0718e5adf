"""Of several processes that end, one says why, and all have its exit status."""

import signal

import pytest

from fastdhm.errors import UserError
from fastdhm.system.peers import OWN, UNSAID, LastWords, end_as_before, first_end, of_a_lost_peer, peer_lost
from fastdhm.system.place import ATTEMPT, Place


class Store(dict):
    """As much of torch's as is needed."""

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key, *default):
        return super().get(key, *default) if default else self[key].encode()

    def set(self, key, value):
        self[key] = value if isinstance(value, str) else value.decode()

    def compare_set(self, key, expected, desired):
        return self.setdefault(key, desired).encode()

    def add(self, key, number):
        self[key] = self.get(key, 0) + number


class Gone:
    """A store whose host is gone."""

    def check(self, *_):
        raise RuntimeError("Broken pipe")

    compare_set = check


def process(rank, local_rank=None, count=4):
    return Place(rank, count, rank if local_rank is None else local_rank, count, "localhost", 29500)


def ended(error, store, here):
    """Who says it, or the exit status of one that says nothing."""
    words = LastWords(store, here)
    words.say(error)
    words.close()
    return getattr(error, "said", getattr(error, "by", "itself"))


LOST = "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"
LATE = "Application timeout caused pair closure"


@pytest.fixture(autouse=True)
def own_place(monkeypatch):
    for name in (ATTEMPT, "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr("fastdhm.system.peers.RANK_S", 0.1)


def test_the_first_that_ends_says_it_and_all_have_its_exit_status():
    store = Store()
    assert ended(UserError("a.png is damaged"), store, process(1)).startswith("process 1 of 4 on ")
    assert ended(peer_lost(RuntimeError(LOST)), store, process(0)) == 2
    assert ended(KeyboardInterrupt(), store, process(2)) == 2


def test_what_all_have_to_say_is_the_first_process_s():
    store = Store()
    assert ended(UserError("no such file"), store, process(0)) == "itself"
    assert ended(UserError("no such file"), store, process(3)) == 2


def test_a_process_that_ends_without_a_word_is_told_of_by_one_of_those_that_are_left():
    store = Store()
    assert ended(peer_lost(RuntimeError(LOST)), store, process(2)) == "itself"
    assert ended(peer_lost(RuntimeError(LOST)), store, process(0)) == 75


def test_our_launcher_tells_of_a_killed_process_and_not_of_one_that_hangs(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"{OWN}1")
    assert ended(peer_lost(RuntimeError(LOST)), Store(), process(0)) == UNSAID
    assert ended(peer_lost(RuntimeError(LATE)), Store(), process(0)) == "itself"


@pytest.mark.parametrize(
    ("rank", "local_rank", "says"), [(1, 1, True), (2, 2, False), (4, 0, True), (5, 1, False)], ids=str
)
def test_without_the_first_process_one_of_each_machine_speaks(rank, local_rank, says):
    said = ended(peer_lost(RuntimeError(LOST)), Gone(), process(rank, local_rank, count=8))
    assert said == ("itself" if says else 75)


@pytest.mark.parametrize("text", [LOST, LATE])
def test_a_lost_process_is_told_by_torch_s_text(text):
    assert of_a_lost_peer(RuntimeError(text)) and not of_a_lost_peer(RuntimeError("size mismatch"))
    assert ("did not answer" in str(peer_lost(RuntimeError(text)))) == (text == LATE)


def test_another_attempt_ends_at_once_where_only_the_user_can_mend_it(monkeypatch):
    store = Store()
    ended(UserError("no such file"), store, process(0))
    for attempt in ("1", "2"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        with pytest.raises(UserError) as error:
            end_as_before(store)
        assert error.value.said == 2
    store = Store({"fastdhm/said/1": "0 75"})
    end_as_before(store)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ({0: UNSAID, 1: -9}, (75, "process 1 of 2 was killed by SIGKILL (memory?)")),
        ({0: -15, 1: -11}, (75, "process 1 of 2 was killed by SIGSEGV")),
        ({0: 143, 1: -9}, (75, "process 1 of 2 was killed by SIGKILL (memory?)")),  # before the training
        ({0: 75, 1: -9}, (75, "")),  # it hung, and torch's launcher killed it
        ({0: -15, 1: 2}, (2, "")),
        ({0: 138, 1: 138}, (138, "")),
        ({0: -15, 1: -15}, (128 + signal.SIGTERM, "")),
        ({0: UNSAID}, (75, "a process was lost")),
    ],
    ids=str,
)
def test_the_exit_status_of_several_processes(statuses, expected):
    assert first_end(statuses, 2) == expected
