"""Files of a run: whole or refused, and never executed."""

import pickle

import pytest
import torch
from torch import nn

from fastdhm.config import TrainConfig
from fastdhm.engine.saved import checkpoint
from fastdhm.system.files import replacing

CONFIG = TrainConfig(arch="resnet8", milestones=(1.0, 2.0))


def save(path, **state):
    checkpoint.save_checkpoint(path, CONFIG, ("a", "b"), {"model": {"w": torch.ones(2)}, **state})


def test_round_trip(tmp_path):
    save(tmp_path / "x.pt", position={"step": 3})
    loaded = checkpoint.load_checkpoint(tmp_path / "x.pt")
    assert loaded["position"] == {"step": 3} and loaded["classes"] == ["a", "b"]
    assert checkpoint.config_from(loaded["config"], tmp_path) == CONFIG


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    save(tmp_path / "x.pt", number=1)
    with pytest.raises(RuntimeError), replacing(tmp_path / "x.pt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert checkpoint.load_checkpoint(tmp_path / "x.pt")["number"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_bit_that_a_disk_turned_over_does_not_become_a_weight(tmp_path):
    path = tmp_path / "x.pt"
    save(path, more=torch.zeros(1000))
    data = bytearray(path.read_bytes())
    data[data.index(bytes(1000)) + 500] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("[enforce fail] . file write failed")], ids=repr
)
def test_a_full_disk_is_said_and_loses_nothing(tmp_path, error):
    """torch reports it as text, everything else by its number."""
    save(tmp_path / "x.pt", number=1)
    with pytest.raises(ValueError, match="cannot write .*x.pt: no space left"), replacing(tmp_path / "x.pt"):
        raise error
    assert checkpoint.load_checkpoint(tmp_path / "x.pt")["number"] == 1


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", ["code", "cut", "empty", "text", "other"])
def test_what_is_no_checkpoint_is_refused_without_running_it(tmp_path, capsys, content):
    path = tmp_path / "x.pt"
    save(path)
    whole = path.read_bytes()
    if content == "code":
        torch.save({"format": 1, "config": {}, "classes": [], "model": Evil()}, path)
    elif content == "other":
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[content])
    with pytest.raises(ValueError, match="x.pt"):
        checkpoint.load_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


def test_a_plain_pickle_is_refused(tmp_path, capsys):
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="contains code"):
        checkpoint.load_checkpoint(tmp_path / "x.pt")
    assert "executed" not in capsys.readouterr().out


def test_weights_of_another_network_are_refused_with_the_first_difference(tmp_path):
    with pytest.raises(ValueError, match="another network than tiny.*1 of another shape.*weight"):
        checkpoint.load_weights(nn.Linear(2, 3), nn.Linear(3, 3).state_dict(), tmp_path, "tiny")


def test_network_file_carries_what_its_user_needs(tmp_path):
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    checkpoint.save_network(tmp_path / "n.safetensors", network, CONFIG, ("a", "b"))
    state, config, classes, _ = checkpoint.load_network(tmp_path / "n.safetensors")
    assert torch.equal(state["weight"], network.weight)
    assert (config, classes) == (CONFIG, ("a", "b"))


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}", b"nonsense" * 9])
def test_a_broken_network_file_is_refused(tmp_path, content):
    (tmp_path / "n.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="n.safetensors"):
        checkpoint.load_network(tmp_path / "n.safetensors")


@pytest.mark.parametrize("text", ["{", "nonsense: 1", "lr: fast", "- 1", ""])
def test_a_broken_config_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="config.yaml"):
        checkpoint.read_config(tmp_path)
