"""What is printed: data as it is, on any stream, whoever reads it."""

import io
import os
import pty
import shlex
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

from fastdhm.errors import UserError
from fastdhm.system.console import Console, every, paste

NAMES = ["synthetic:100", "r [a]/one", "a[/b]/run", "[bold]x[/]", "two  blanks", "café", "x" * 300, "{0} %s $a$"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is(name):
    text = io.StringIO()
    console = Console(file=text, width=40)
    console.print(name)
    console.print(Text(name, style="bold"))
    console.print(name, style="bold")
    assert text.getvalue() == f"{name}\n" * 3


@pytest.mark.parametrize("name", ["synthetic:100", "a[/b]/run", "[bold]x[/]", "café"])
def test_tables_and_rules_show_names_as_they_are(name):
    text = io.StringIO()
    console = Console(file=text, width=60)
    table = Table(title=name, caption=name)
    table.add_column(name)
    table.add_row(name)
    console.print(table)
    console.rule(name)
    assert text.getvalue().count(name) == 5


def test_a_terminal_obeys_nothing_that_a_name_holds():
    text = io.StringIO()
    console = Console(file=text)
    console.print("red\x1b[31m\r\x9bx")
    console.print(Text("red\x1b[31m"))
    console.print("name\udce9")
    assert text.getvalue() == "red\\x1b[31m\\x0d\\x9bx\nred\\x1b[31m\nname\\xe9\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16", "cp437"])
def test_any_encoding_will_do(encoding):
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding))
    console.print("1 ± 2 💯 \udce9")
    shown = raw.getvalue().decode(encoding)
    assert shown == {"ascii": "1 +- 2 \\U0001f4af \\xe9\n", "latin-1": "1 +- 2 \\U0001f4af \\xe9\n"}.get(
        encoding, shown
    )
    assert shown.startswith("1 ") and shown.endswith("\\xe9\n")


@pytest.fixture
def broken_pipe():
    """A stream onto a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as file:
        yield file
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), writing)  # what is in the buffer goes there


def test_a_reader_who_has_gone_stops_nothing(broken_pipe):
    Console(file=broken_pipe).print("narration")
    Console(file=broken_pipe).result("all that was wanted was read")


def test_a_closed_stream_stops_nothing():
    file = io.StringIO()
    file.close()
    Console(file=file).print("narration")


def test_a_full_disk_stops_no_narration_but_a_result_says_so(capsys):
    with open("/dev/full", "w") as file:
        console = Console(file=file)
        for _ in range(3):
            console.print("narration")
        assert capsys.readouterr().err.count("cannot write to the output (No space left on device)") == 1
        with pytest.raises(UserError, match="cannot write the result.*No space left"):
            console.result("{}")
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), file.fileno())


def test_a_result_after_room_was_made_is_written():
    text = io.StringIO()
    console = Console(file=text)
    console.file.lost = OSError(28, "No space left on device")
    console.result("{}")
    assert text.getvalue() == "{}\n"


@pytest.fixture
def terminal():
    """The two ends of a terminal of 100 columns: what is written, read."""
    leader, follower = pty.openpty()
    subprocess.run(["stty", "cols", "100", "rows", "30"], stdin=follower, check=True)
    with open(follower, "w") as file:
        yield file
    os.close(leader)


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False), ("unknown", False), ("", False)])
def test_a_bar_needs_a_terminal_that_can_move_its_cursor(monkeypatch, terminal, term, live):
    monkeypatch.setenv("TERM", term)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    assert Console(file=terminal).live is live


def test_a_bar_needs_a_width(monkeypatch, terminal):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    subprocess.run(["stty", "cols", "0", "rows", "0"], stdin=terminal, check=True)
    assert not Console(file=terminal).live
    monkeypatch.setenv("COLUMNS", "90")
    assert Console(file=terminal).live


def test_a_pipe_that_is_promised_colours_gets_no_bar(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    text = io.StringIO()
    console = Console(file=text)
    assert not console.live
    with console.counting("images", 3) as advance:
        advance(3)
    assert text.getvalue() == ""


def test_work_that_is_watched_through_a_pipe_says_now_and_then_how_far_it_is(monkeypatch):
    monkeypatch.setattr("fastdhm.system.console.PLAIN_LINE_SECONDS", -1)
    text = io.StringIO()
    with Console(file=text).counting("a[/b] train", 1000) as advance:
        advance(16)
    assert text.getvalue().startswith("a[/b] train: 16 of 1,000")
    assert not every(60)()


@pytest.mark.parametrize("columns", ["0", "-1", "²", "9" * 5000, "wide", "1"])
def test_a_width_that_is_none_breaks_nothing(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    table = Table(title="title")
    table.add_row("cell")
    Console(file=io.StringIO()).print(table)


@pytest.mark.parametrize("word", ["plain", "two words", "it's", "[a]", "$x", "", "café", "\udce9\n'\\", "é\x1b7"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_command_to_paste_is_what_the_shell_understands(monkeypatch, word, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    command = paste("printf", "%s", word)
    command.encode(encoding)
    said = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, check=True).stdout
    assert said == os.fsencode(word)
    if word in ("plain", "two words"):
        assert shlex.split(command) == ["printf", "%s", word]
