"""How a command ends that did not succeed: a sentence for what others caused, a file to report for what we did."""

import errno
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastdhm import cli
from fastdhm.cli import main
from fastdhm.errors import UserError
from fastdhm.system.endings import belonging_to, cause, report_crash


@pytest.fixture
def ends(monkeypatch):
    """Let `fastdhm models` end in an exception."""

    def with_exception(error):
        def run(argv):
            raise error

        monkeypatch.setattr(cli, "import_module", lambda name: type("module", (), {"run": staticmethod(run)}))
        return main(["models"])

    return with_exception


def test_an_error_of_ours_is_two_lines_and_a_file_to_report(ends, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ends(KeyError("B0")) == 70
    first, second = capsys.readouterr().err.splitlines()
    assert "KeyError: 'B0'" in first
    (written,) = tmp_path.glob("crash-*.txt")
    assert str(written) in second
    text = written.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text and "torch 2" in text and "['fastdhm', 'models']" in text


def test_the_report_is_in_the_run_directory_with_its_config(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"arch: resnet8\nrun_dir: \xe9")
    with pytest.raises(KeyError) as raised, belonging_to(tmp_path):
        raise KeyError("B0")
    written = report_crash(raised.value, ["train", "name\udce9"], ["Python: 3"])
    assert written.parent == tmp_path
    assert "arch: resnet8" in written.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_hides_no_error(ends, monkeypatch, capsys):
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert ends(KeyError("B0")) == 70
    shown = capsys.readouterr().err
    assert "no file could be written" in shown
    assert "Traceback" in shown and shown.rstrip().endswith("KeyError: 'B0'")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a[b]/x.pt"), "a[b]/x.pt: no space left; free some space"),
        (
            OSError(errno.EACCES, "Permission denied", b"caf\xe9"),
            "caf\\xe9: permission denied; give this user permission to read",
        ),
        (OSError(errno.EMFILE, "Too many open files", "x"), "x: Too many open files; raise `ulimit -n`"),
        (OSError(errno.EINVAL, "Invalid argument", "x", None, "y"), "x and y: Invalid argument"),
        (OSError("truncated"), "truncated"),
        (MemoryError(), "not enough memory (no more is available): use a smaller --batch-size, or --activation-check"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nmore"), "not enough memory (DefaultCPU"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory (CUDA out of memory"),
        (ImportError("libx.so: cannot open", name="torch"), "torch cannot be imported (libx.so: cannot open)"),
        (RecursionError(), "nested too deeply"),
        (UserError("as it is"), "as it is"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_what_the_machine_caused_is_a_sentence_with_the_remedy(error, said):
    assert said in cause(error, "train")
    assert "Errno" not in cause(error, "train")


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shape"), ImportError("us", name="fastdhm.x")], ids=repr)
def test_what_is_ours_is_not_put_on_others(error):
    assert cause(error, "train") is None


def test_the_line_of_an_error_is_what_it_says(ends, capsys):
    assert ends(UserError("data 'a[/b] :100:' is wrong")) == 2
    assert capsys.readouterr().err == "fastdhm: error: data 'a[/b] :100:' is wrong\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_before_there_is_anything_to_save_ends_in_a_line(number):
    """While a library is imported: some make another exception of it."""
    program = (
        "import os, signal, sys, types\nfrom fastdhm import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # tests under nohup inherit that it is ignored
        "def run(argv):\n"
        f"  try: os.kill(os.getpid(), {int(number)})\n"
        "  except KeyboardInterrupt: raise ImportError('numpy._core failed')\n"
        "cli.import_module = lambda name: types.SimpleNamespace(run=run)\n"
        "sys.exit(cli.main(['models']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (128 + number, f"fastdhm: stopped by {number.name}\n")


ASCII = {"PYTHONIOENCODING": "ascii"}
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("setting", [ASCII, LOCALE], ids=["ascii", "C"])
@pytest.mark.parametrize("argv", [["--help"], ["caf\udce9 💯"], ["train", "--run-dir", "é\udcff", "--print_config"]])
def test_no_character_is_too_much_for_the_output(setting, argv):
    run = subprocess.run([sys.executable, "-m", "fastdhm", *argv], capture_output=True, env=os.environ | setting)
    assert b"Traceback" not in run.stderr
    assert run.returncode in (0, 2)
    assert run.stdout + run.stderr


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["train", "--help"], ["train", "--print_config"]], ids=str)
def test_what_was_asked_for_and_cannot_be_written_is_told(argv):
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-m", "fastdhm", *argv], stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2
    assert run.stderr == "fastdhm: error: cannot write the result to the output: No space left on device\n"


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["train", "--print_config"]], ids=str)
def test_a_reader_who_has_read_enough_is_no_error(argv):
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run([sys.executable, "-m", "fastdhm", *argv], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_break_nothing(closed):
    run = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m fastdhm trian {closed}"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
