"""The compiled step: when it takes over, what that leaves behind, and what becomes of the process that makes it."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.engine import compiling
from fastdhm.engine.saved.checkpoint import load_checkpoint
from fastdhm.engine.saved.record import read_log
from fastdhm.engine.sums import TrainingSums

RUN = "--dataset synthetic:160 --arch resnet8 --method baseline --image-size 8 --batch-size 16 --epochs 1 --device cpu"
SWAP_AT = 4  # steps


class Killed(BaseException):
    """As sudden as SIGKILL: nothing is saved on the way out."""


class ReadyAt:
    """A child whose work is done when the run has made ``SWAP_AT`` steps."""

    started = 0

    def __init__(self, run):
        self.run, self.output, self.lasted = run, run.dir / "compile.log", 1.5
        self.output.touch()
        ReadyAt.started += 1

    def ended(self):
        return 0 if self.run.at.step >= SWAP_AT else None

    def close(self):
        pass


@pytest.fixture
def quick_compiler(monkeypatch):
    """torch.compile without code generation: it traces and decomposes, which rounds otherwise than eager does."""
    monkeypatch.setenv("CXX", "sh")  # looked for, and not called
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    monkeypatch.setattr(ReadyAt, "started", 0)
    monkeypatch.setattr(compiling, "Child", ReadyAt)


def train(run_dir, *flags):
    folders = ["--run-dir", str(run_dir), "--data-dir", str(run_dir.parent / "data")]
    loader = ["--loader", "torch", "--workers", "0", "--precision", "float32", "--log-every", "1"]
    return main(["train", *RUN.split(), *folders, *loader, *flags])


def weights(run_dir):
    return load_checkpoint(run_dir / "last.pt")["model"]


def agree(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_compiled_step_takes_over_and_a_resume_is_compiled_from_there_on(tmp_path, quick_compiler, monkeypatch):
    """Killed three steps after the change, which no checkpoint but the change's own remembers."""
    eager, whole, cut = (tmp_path / name for name in ("eager", "whole", "cut"))
    assert train(eager, "--compile", "off") == 0
    assert train(whole, "--compile", "on") == 0
    assert ReadyAt.started == 1
    (row,) = [row for row in read_log(whole) if row["kind"] == "compile"]
    assert row == {"kind": "compile", "step": SWAP_AT, "swap_step": SWAP_AT, "ahead_seconds": 1.5}
    assert not (whole / "compile.log").exists()
    assert not agree(weights(whole), weights(eager)), "the compiled step rounds as the eager: this shows nothing"
    losses = [[row["loss"] for row in read_log(run_dir) if row["kind"] == "step"] for run_dir in (whole, eager)]
    assert losses[0][:SWAP_AT] == losses[1][:SWAP_AT]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    def killed_add(self, step, *values, add=TrainingSums.add):
        if step == SWAP_AT + 3:
            raise Killed
        add(self, step, *values)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(TrainingSums, "add", killed_add)
        train(cut, "--compile", "on")
    assert load_checkpoint(cut / "last.pt")["position"]["step"] == SWAP_AT
    assert main(["train", "--resume", str(cut)]) == 0
    assert ReadyAt.started == 2, "the resumed run has nothing to wait for"
    assert agree(weights(cut), weights(whole))
    kinds = [[(row["kind"], row["step"], row.get("loss")) for row in read_log(run_dir)] for run_dir in (cut, whole)]
    assert [row for row in kinds[0] if row[0] != "startup"] == [row for row in kinds[1] if row[0] != "startup"]


@pytest.mark.slow
def test_a_deterministic_run_never_changes_over(tmp_path, quick_compiler, monkeypatch):
    """It is compiled from its first step on; two of them agree in every bit; torch is left as it was."""
    modes = []

    def noting_add(self, step, *values, add=TrainingSums.add):
        modes.append(torch.get_deterministic_debug_mode())
        add(self, step, *values)

    monkeypatch.setattr(TrainingSums, "add", noting_add)
    before = torch.get_deterministic_debug_mode()
    for name in ("one", "other"):
        assert train(tmp_path / name, "--compile", "on", "--deterministic", "true") == 0
    assert ReadyAt.started == 0 and set(modes) == {2} and torch.get_deterministic_debug_mode() == before
    assert agree(weights(tmp_path / "one"), weights(tmp_path / "other"))
    assert load_checkpoint(tmp_path / "one" / "last.pt")["position"]["compiled_at"] == 0


def test_an_operation_without_a_deterministic_form_is_named(tmp_path, monkeypatch, capsys):
    def unordered(*_):
        raise RuntimeError("put_ does not have a deterministic implementation, but you set 'torch.use_...")

    monkeypatch.setattr(TrainingSums, "add", unordered)
    assert train(tmp_path / "run", "--deterministic", "true") == 2
    assert "put_ does not have a deterministic implementation: set --deterministic false" in capsys.readouterr().err


FAILING = [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit('no space left on device')"]


def test_a_run_whose_compiler_fails_says_so_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "sh")  # looked for, and not called
    monkeypatch.setattr(compiling.Child, "COMMAND", FAILING)
    add, popen, children = TrainingSums.add, subprocess.Popen, []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: children.append(popen(*a, **k)) or children[-1])

    def waiting_add(self, step, *values):  # or the run would be over before the child is
        add(self, step, *values)
        if step == 5:
            wait_for(lambda: any(child.args == FAILING and child.poll() is not None for child in children))

    monkeypatch.setattr(TrainingSums, "add", waiting_add)
    assert train(tmp_path / "run", "--compile", "on") == 0
    assert "stays uncompiled" in capsys.readouterr().out
    assert (tmp_path / "run" / "compile.log").read_text() == "no space left on device\n"
    assert load_checkpoint(tmp_path / "run" / "last.pt")["position"]["compiled_at"] is None


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# What a child is made of, without torch: it reads its task, then a compiler of its own works for a long time.
BUSY = """
import subprocess, sys
from pathlib import Path
{end_with_parent}
task = sys.stdin.buffer.readline()
end_with_parent()
Path(sys.argv[1]).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
import time; time.sleep(600)
"""


@pytest.fixture
def busy(monkeypatch, tmp_path):
    """Children that work for ever, and the file where they write the process id of their compiler."""
    import inspect

    source = f"import ctypes, os, signal, threading\nPR_SET_PDEATHSIG = {compiling.PR_SET_PDEATHSIG}\n"
    source += inspect.getsource(compiling.end_with_parent)
    program, note = tmp_path / "busy.py", tmp_path / "pid"
    program.write_text(BUSY.format(end_with_parent=source))
    monkeypatch.setattr(compiling.Child, "COMMAND", [sys.executable, str(program), str(note)])
    return note


def stub(run_dir):
    return SimpleNamespace(
        config=TrainConfig(), dir=run_dir, classes=("a", "b"), pretrained=(), at=SimpleNamespace(epoch=0),
        device=torch.device("cpu"),
    )  # fmt: skip


def test_the_compiler_beside_a_run_leaves_it_the_memory_of_whole_images(monkeypatch, tmp_path):
    """At step 2 of a progressive run the images are half as wide, and their activations a quarter."""
    gib, run = 1 << 30, stub(tmp_path)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2 * gib)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * gib)
    run.device, run.side = torch.device("cuda", 0), 32
    run.config = TrainConfig(progressive=0.5)
    assert compiling.room_for(run) == 2 * gib * 4 - 3 * gib
    run.config = TrainConfig(progressive=0)
    assert compiling.room_for(run) == gib, "what it holds is enough for its peak, and a little is left free"
    run.device = torch.device("cpu")
    assert compiling.room_for(run) == 0


def test_a_run_that_ends_takes_the_child_and_its_compilers_along(tmp_path, busy):
    child = compiling.Child(stub(tmp_path))
    wait_for(lambda: busy.exists() and busy.read_text())
    assert child.ended() is None and alive(int(busy.read_text()))
    child.close()
    wait_for(lambda: not alive(int(busy.read_text())))
    assert not alive(child.process.pid) and not child.output.exists()


@pytest.mark.parametrize("stands_still", [False, True], ids=["at work", "stopped"])
def test_a_killed_run_takes_the_child_and_its_compilers_along(tmp_path, busy, stands_still):
    """SIGKILL leaves no time to tidy up: the child sees its input close."""
    parent = os.fork()
    if parent == 0:
        child = compiling.Child(stub(tmp_path))
        wait_for(lambda: busy.exists() and busy.read_text())
        if stands_still:
            os.kill(child.process.pid, signal.SIGSTOP)
        (tmp_path / "ready").touch()
        time.sleep(600)
        os._exit(1)
    wait_for((tmp_path / "ready").exists)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_for(lambda: not alive(int(busy.read_text())))


@pytest.mark.parametrize(
    ("settings", "epoch", "expected"),
    [
        ({}, 0, [(0, 32)]),
        ({"progressive": 0.5}, 0, [(0, 16), (0, 24), (0, 32)]),
        ({"progressive": 0.5}, 40, [(40, 24), (40, 32)]),
        ({"progressive": 1.0}, 0, [(0, 16), (0, 24)]),
        ({"progressive": 0.5}, 50, [(50, 32)]),
        ({"freeze_epochs": 10, "weights": "w.pt"}, 0, [(0, 32), (10, 32)]),
        ({"freeze_epochs": 10, "weights": "w.pt"}, 10, [(10, 32)]),
        (
            {"freeze_epochs": 40, "weights": "w.pt", "progressive": 0.5},
            0,
            [(0, 16), (0, 24), (40, 24), (40, 32)],
        ),
    ],
)
def test_what_is_compiled_ahead_is_what_the_run_still_computes(settings, epoch, expected):
    assert list(compiling.variants(TrainConfig(epochs=100, **settings), epoch, 32)) == expected


# Of every process: a network of few kernels, as each is most of a second of C++.
TINY = """
import sys
from torch import nn
from fastdhm.models.families import cifar_resnet

cifar_resnet._stage = lambda before, channels, blocks, stride=2: nn.Conv2d(before, channels, 1, stride)
"""
COMPILER = f"{TINY}\nimport runpy\nrunpy.run_module('fastdhm.engine.compiling', run_name='__main__')"


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_run_compiled_beside_itself_finds_its_code_in_the_cache(tmp_path):
    """The whole way, from an empty cache: the child's work is the run's, which compiles nothing again."""
    program = f"""{TINY}
from fastdhm.cli import main
from fastdhm.engine.compiling import Child, SwitchingCompute

Child.COMMAND = (sys.executable, "-c", {COMPILER!r})

def wait_and_swap(self, swap=SwitchingCompute.swap_if_ready):
    if self.child is not None:
        self.child.process.wait()
    swap(self)

SwitchingCompute.swap_if_ready = wait_and_swap
status = main(sys.argv[1:])
from torch._dynamo.utils import counters
print(dict(counters["aot_autograd"]), dict(counters["inductor"]))
sys.exit(status)
"""
    folders = ["--run-dir", str(tmp_path / "run"), "--data-dir", str(tmp_path / "data")]
    flags = [*RUN.split(), *folders, "--compile", "on", "--max-steps", "6", "--loader", "torch"]
    process = subprocess.run(
        [sys.executable, "-c", program, "train", *flags, "--workers", "0", "--log-every", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "TORCHINDUCTOR_VEC_ISA_OK": "1"},
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    assert [row["kind"] for row in read_log(tmp_path / "run")].count("compile") == 1
    assert "'autograd_cache_hit': 1" in process.stdout and "miss" not in process.stdout
