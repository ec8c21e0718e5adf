"""What the guide shows is run: its Python, its commands, its links and the files that it names.

A name that the text introduces, such as ``images``, has a stand-in in a comment above its block: ``<!-- stand-ins``.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastdhm import cli, models
from fastdhm.cli.parser import Parser
from fastdhm.cli.train import resolve_training
from fastdhm.config import TrainConfig
from fastdhm.engine.saved.checkpoint import save_network
from fastdhm.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))}
PYTHON = re.compile(
    r"""
    (?:^<!--\ stand-ins\n(.*?)^-->\n)?     # what the text introduces
    ^```python\n(.*?)^```
    (?:\n\nIt\ prints.*?\n\n```text\n(.*?)^```)?   # what it prints
""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
CODE = re.compile(r"^```\w*\n.*?^```|^ {4}.*$", re.MULTILINE | re.DOTALL)  # blocks, fenced or indented
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:fastdhm|csrc|benchmarks|tests|tools|docs|kernels)/[\w./-]*|[A-Z]+\.md)`")
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")  # RUN, FOLDER, NAME: for the reader to fill in


def line_of(page, position):
    return PAGES[page].read_text("utf-8")[:position].count("\n") + 1


def blocks():
    """The Python blocks, each with its stand-ins and with what it is said to print."""
    for page, path in PAGES.items():
        for found in PYTHON.finditer(path.read_text("utf-8")):
            yield pytest.param(found[1] or "", found[2], found[3], id=f"{page}:{line_of(page, found.start(2))}")


def commands(program):
    """What stands behind ``program`` in code: on a line of a block, or in a sentence."""
    for page, path in PAGES.items():
        text = path.read_text("utf-8")
        shown = [(found.start() + at.start(1), at[1]) for found in CODE.finditer(text)
                 for at in re.finditer(rf"^ *{program} (.*)$", found[0], re.MULTILINE)]  # fmt: skip
        shown += [(found.start(), found[1].replace("\n", " ")) for found in re.finditer(rf"`{program} ([^`]+)`", text)]
        for position, words in sorted(shown):
            yield pytest.param(shlex.split(words, comments=True), id=f"{page}:{line_of(page, position)}")


def network_file(path, arch, classes):
    """Leave ``network.safetensors`` as a run does, with random weights."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    network = models.build(arch, len(classes), ()).strip()
    save_network(Path(path), network, TrainConfig(arch=arch), classes)


@pytest.mark.parametrize(("stand_ins", "code", "printed"), list(blocks()))
def test_python_runs(stand_ins, code, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"torch": torch, "network_file": network_file}
    exec(stand_ins, names)
    exec(code, {name: value for name, value in names.items() if not isinstance(value, ModuleType)})
    assert printed is None or capsys.readouterr().out == printed


class Parsed(Exception):
    """The command line is right; what would come now is the work."""


@pytest.mark.parametrize("words", list(commands("fastdhm")))
def test_commands_parse(words, monkeypatch):
    def and_stop(parse):
        def parse_and_stop(*arguments):
            parse(*arguments)
            raise Parsed

        return parse_and_stop

    if words[0] == "train" and "--resume" not in words and not any(map(PLACEHOLDER.search, words)):
        with pytest.raises(SystemExit) if "--print-config" in words else pytest.raises(Parsed):
            try:
                resolve_training(words[1:])
            except UserError as error:  # an optional library
                if "is not installed: pip install" in str(error):
                    pytest.skip(str(error))
                raise
            raise Parsed
        return
    for parse in (Parser.parse, Parser.given):
        monkeypatch.setattr(Parser, parse.__name__, and_stop(parse))
    with pytest.raises(Parsed):
        cli._dispatch(words[0], words[1:])


def test_every_command_is_shown():
    shown = {" ".join(example.values[0][:2]) for example in commands("fastdhm")}
    assert not [name for name in cli.COMMANDS if not any(f"{text} ".startswith(f"{name} ") for text in shown)]


@pytest.mark.parametrize("words", list(commands("make")))
def test_make_has_the_targets(words):
    assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page):
    text = PAGES[page].read_text("utf-8")
    for link in LINK.findall(text):
        name, _, anchor = link.partition("#")
        target = (PAGES[page].parent / name).resolve() if name else PAGES[page]
        assert link.startswith("https:") or target.is_file(), link
        assert not anchor or anchor in anchors(target), link
    for name in PATH.findall(text):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_what_contributors_are_sent_to_is_there():
    """A file without its room, such as ``saved/record.py``, lies in a folder that the same sentence or row names."""
    text = PAGES["contributing.md"].read_text("utf-8")
    for part in re.split(r"\n\n|\n(?=[|\d-])", text):
        names = [name for name in re.findall(r"`([\w./-]+)`", part) if "NAME" not in name]
        folders = [ROOT, *(ROOT / name for name in names if name.endswith("/"))]
        for name in names:
            if re.search(r"\w\.(py|cpp|h|md|sh|svg|toml)$", name):
                assert any((folder / name).is_file() for folder in folders), name
    for file, name in re.findall(r"`(fastdhm/(?!\S*NAME)\S+\.py)`: [^`]*`([A-Z]+)`", text):
        assert re.search(rf"^{name} = ", (ROOT / file).read_text("utf-8"), re.MULTILINE), f"{name} in {file}"


def anchors(page):
    """What a code host and mkdocs both make of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install '.[docs]'")
def test_the_site_builds_and_fetches_nothing(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert run.returncode == 0, run.stdout + run.stderr
    for path in tmp_path.rglob("*.html"):
        fetched = re.findall(r'(?:src="|<link [^>]*href=")https?:[^"]*', path.read_text("utf-8"))
        assert not fetched, path
