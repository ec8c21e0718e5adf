"""The house rules that code can check: which way imports run, who touches what, what importing costs."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from source_tree import ROOT, module_name, sources

# room (a folder, or a file beside the folders) -> the rooms that it may import from, beside its own; nothing else
ALLOWED = {
    "config": set(),
    "errors": set(),
    "kernels": set(),
    "__main__": {"cli"},
    "data.augment": {"errors", "ops"},
    "engine.optim": {"errors", "models.base"},
    "models.base": {"errors"},
    "recipes": {"errors"},
    "system": {"errors"},
    "data.images": {"errors", "system"},
    "page": {"", "config", "engine.saved", "errors", "models", "per_class", "system"},
    "per_class": {"errors", "system"},
    "methods": {"config", "errors", "ops"},
    "ops": {"errors", "kernels"},
    "models.attach": {"errors", "models.base", "system"},
    "models.families": {"errors", "models.attach", "models.base"},
    "reid": {"errors", "ops", "system"},
    "data.beton": {"data.images", "data.sources", "errors", "system"},
    "data.sources": {"data.images", "errors", "ops", "system"},
    "engine.fast": {"errors", "models", "models.base", "ops"},
    "engine.saved": {"config", "data.sources", "errors", "system"},
    "models.weights": {"errors", "models.base", "models.families", "system"},
    "commands.doctor": {"", "data.loaders", "engine", "ops", "system"},
    "models": {"errors", "models.attach", "models.base", "models.families", "models.weights"},
    "data": {"data.beton", "data.images", "data.loaders", "data.sources", "errors", "system"},
    "data.loaders": {"data.beton", "data.images", "data.sources", "errors", "ops", "system"},
    "benchmarks.harness": {"", "commands.doctor", "engine", "engine.fast", "errors", "ops", "system"},
    "benchmarks.reference": {
        "benchmarks.harness",
        "config",
        "data.loaders",
        "data.sources",
        "engine",
        "engine.fast",
        "errors",
        "methods",
        "models",
        "ops",
        "recipes",
        "system",
    },
    "cli": {
        "",
        "commands",
        "commands.doctor",
        "compare",
        "config",
        "data.beton",
        "data.images",
        "engine",
        "engine.optim",
        "engine.saved",
        "errors",
        "recipes",
        "system",
    },
    "compare": {
        "",
        "config",
        "data.loaders",
        "data.sources",
        "engine",
        "engine.optim",
        "engine.saved",
        "errors",
        "methods",
        "models",
        "recipes",
        "system",
    },
    "commands": {
        "config",
        "data",
        "data.augment",
        "data.beton",
        "data.images",
        "data.loaders",
        "data.sources",
        "engine",
        "engine.saved",
        "errors",
        "models",
        "models.weights",
        "page",
        "per_class",
        "reid",
        "system",
    },
    "engine": {
        "config",
        "data",
        "data.augment",
        "data.beton",
        "data.images",
        "data.loaders",
        "data.sources",
        "engine.fast",
        "engine.optim",
        "engine.saved",
        "errors",
        "methods",
        "models",
        "ops",
        "page",
        "per_class",
        "reid",
        "system",
    },
    "benchmarks": {
        "benchmarks.harness",
        "benchmarks.reference",
        "config",
        "data",
        "data.augment",
        "data.beton",
        "data.loaders",
        "data.sources",
        "engine",
        "engine.optim",
        "engine.saved",
        "errors",
        "kernels",
        "methods",
        "models",
        "ops",
        "recipes",
        "reid",
        "system",
    },
}
# an optional library -> the one file that imports it
DOORS = {"ffcv": "fastdhm/data/loaders/ffcv_library.py", "fastdhm._C": "fastdhm/ops/_extension.py"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, with the names taken from ``fastdhm`` itself."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = {module_name(path): path for path in sources()}
# A package's own `__init__` is its legend and its face: it belongs to the room above all of its files.
ROOMS = {
    name: name if path.name == "__init__.py" or "." not in name else name.rpartition(".")[0]
    for name, path in MODULES.items()
}


def taken_by(path: Path) -> set[str]:
    """The files of the package that a file imports, or takes a name from."""
    names = {name.partition(".")[2] for name in imports(path) if name.startswith("fastdhm.")}
    # `from fastdhm.data import pool` takes a file, `from fastdhm.data.images.pool import WorkerPool` a name in one
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


@pytest.mark.parametrize("room", sorted(set(ROOMS.values()) - {""}))
def test_imports_run_one_way(room):
    files = [path for name, path in MODULES.items() if ROOMS[name] == room]
    used = {ROOMS.get(name, name) for path in files for name in taken_by(path)}
    assert used - {room} <= ALLOWED[room], f"{room} may not import from {sorted(used - {room} - ALLOWED[room])}"


def test_no_room_leads_back_to_itself():
    assert ALLOWED.keys() == set(ROOMS.values()) - {""}
    list(TopologicalSorter(ALLOWED).static_order())  # raises CycleError, which names the circle


def test_no_circle_of_files():
    list(TopologicalSorter({name: taken_by(path) - {name} for name, path in MODULES.items()}).static_order())


def test_every_command_has_its_file_and_every_file_its_command():
    from fastdhm.cli import COMMANDS

    files = {path.stem for path in (ROOT / "fastdhm" / "cli").glob("*.py")} - {"__init__", "parser", "processes"}
    assert files == {name.split()[0].replace("-", "_") for name in COMMANDS}


@pytest.mark.parametrize("library", DOORS)
def test_optional_libraries_have_one_door(library):
    users = {
        str(path.relative_to(ROOT))
        for path in sources()
        if any(name == library or name.startswith(f"{library}.") for name in imports(path))
    }
    assert users <= {DOORS[library]}


def test_all_is_printed_by_one_console():
    """Nothing else knows rich's console or its markup: what is data would be interpreted."""
    markup = re.compile(r"\[/?(bold|dim|italic|red|green|yellow|cyan|magenta|blue)\b[^\]\n]*\]|\[/\]")
    for path in sources():
        if path.parts[-2:] in (("system", "console.py"), ("system", "streams.py")):
            continue
        assert not {name for name in imports(path) if name.startswith(("rich.console", "rich.markup", "rich.print"))}
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id in ("print", "TextColumn")), f"{path}:{node.lineno}"
            defaults = node.args.defaults + node.args.kw_defaults if isinstance(node, ast.FunctionDef) else []
            assert not [d for d in defaults if isinstance(d, ast.Name) and d.id == "print"], f"{path}:{node.lineno}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not markup.search(node.value), f"{path}:{node.lineno}"


def test_text_files_are_utf8_whatever_the_locale():
    position = {"open": 3, "read_text": 0, "write_text": 1}  # of the encoding, for a method one less
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            name = (node.func.attr if method else getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            owner = getattr(node.func.value, "id", "") if method else ""
            if name not in position or owner in ("os", "Image") or (name == "write_text" and not method):
                continue
            modes = [a.value for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)]
            binary = name == "open" and any(isinstance(mode, str) and "b" in mode for mode in modes)
            told = len(node.args) > position[name] or any(k.arg == "encoding" for k in node.keywords)
            assert binary or told, f"{path}:{node.lineno} leaves the encoding to the locale"


def test_host_waits_for_the_device_in_one_file():
    calls = ("item", "cpu", "tolist", "synchronize")
    waits = [
        f"{path.name}:{node.lineno}"
        for path in sorted((ROOT / "fastdhm" / "engine").rglob("*.py"))
        if path.name not in ("record.py", "checkpoint.py")  # a checkpoint is written where the host waits anyway
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in calls
    ]
    assert not waits


def test_importing_is_cheap():
    """Nothing but the standard library is loaded, so ``import fastdhm`` costs nothing beside ``import torch``."""
    program = "import sys, fastdhm, fastdhm.data; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "torchvision", "numpy", "ffcv", "triton", "rich", "matplotlib", "PIL", "jsonargparse"}
    assert not heavy & set(run.stdout.split())


def test_the_face_loads_on_first_use():
    import fastdhm

    assert callable(fastdhm.mimic_loss)
    assert callable(fastdhm.branch_mask)
    assert fastdhm.models.build("resnet8", 10).branch_names == ("B0", "B1", "B2")
    assert "mimic_loss" in dir(fastdhm)
    with pytest.raises(AttributeError, match="nonsense"):
        fastdhm.nonsense  # noqa: B018
