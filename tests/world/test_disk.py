"""A disk that is full, at each write of a run in turn: one line, nothing half written, and a resume that ends where an
undisturbed run would."""

import contextlib
import errno
import os
import subprocess
from pathlib import Path

import pytest

from fastdhm.cli import main
from runs import assert_same_state, command

pytestmark = pytest.mark.slow
FLAGS = ("--epochs", "2", "--method", "baseline", "--keep", "best")
KIB = 1024


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(command(run_dir, *FLAGS)) == 0
    return run_dir


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def full_from(monkeypatch, call: str, number: int):
    """Inside, ``call`` of module os fails from its ``number``-th time on; yields the times that it was made."""
    real, times = getattr(os, call), []

    def counted(*args, **kwargs):
        times.append(args)
        return (full if len(times) >= number else real)(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, counted)
        yield times


@pytest.mark.parametrize(("call", "step"), [("replace", 1), ("fsync", 5)])
def test_a_disk_full_at_any_file_leaves_a_run_to_go_on_with(undisturbed, tmp_path, monkeypatch, capsys, call, step):
    """os.replace ends each file that is whole or not there; fsync tells some file systems that they are full."""
    number, status = 1, 2
    while status == 2:
        run_dir = tmp_path / str(number)
        capsys.readouterr()
        with full_from(monkeypatch, call, number) as times:
            status = main(command(run_dir, *FLAGS))
        err = capsys.readouterr().err
        if status == 2:
            assert len(err.splitlines()) == 1 and "no space left" in err, (number, err)
            resumed = (run_dir / "config.yaml").exists()
            assert main(["train", "--resume", str(run_dir)] if resumed else command(run_dir, *FLAGS)) == 0, number
        assert not list(run_dir.rglob("*.tmp"))
        assert_same_state(run_dir / "last.pt", undisturbed / "last.pt")
        number += step
    assert len(times) > 8 and number > 6


@contextlib.contextmanager
def small_disk(folder: Path, size_kib: int):
    """A file system of so many KiB at ``folder``; skips where mounting is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("nothing can be mounted here")
    try:
        yield lambda size_kib: subprocess.run([*mount[:3], "-o", f"remount,size={size_kib}k", *mount[5:]], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size_kib", [4, 64, 400, 700, 1000, 1300, 1600, 1900])
def test_a_disk_of_any_size_is_filled_in_order(undisturbed, tmp_path, capsys, size_kib):
    """What lies on it grows to about 2 MiB: the config, two checkpoints and one being written, the log, pictures."""
    with small_disk(tmp_path / "disk", size_kib) as resize:
        run_dir = tmp_path / "disk" / "run"
        status = main(command(run_dir, *FLAGS))
        err = capsys.readouterr().err
        assert status in (0, 2)
        assert len(err.splitlines()) <= 1 and (status == 0) == ("no space left" not in err), err
        resize(16 * KIB)
        if status == 2:
            resumed = (run_dir / "config.yaml").exists()
            assert main(["train", "--resume", str(run_dir)] if resumed else command(run_dir, *FLAGS)) == 0
        assert_same_state(run_dir / "last.pt", undisturbed / "last.pt")
