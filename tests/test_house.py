"""The house rules that code can check: which way imports run, who touches what, what importing costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# package -> what of fastdhm it may import; nothing else
ALLOWED = {
    "errors": set(),
    "streams": {"errors"},
    "console": {"streams"},
    "plotting": {"files", "streams"},
    "endings": {"errors", "files"},
    "processors": set(),
    "memory": {"processors"},
    "environment": {"errors"},
    "waiting": {"environment", "errors", "console"},
    "config": set(),
    "recipes": {"errors"},
    "files": {"errors"},
    "typed_yaml": {"errors"},
    "paths": {"errors"},
    "methods": {"errors", "ops"},
    "ops": {"errors", "ops", "kernels", "_C"},
    "models": {"errors", "console", "files", "models"},
    "data": {
        "streams",
        "paths",
        "environment",
        "errors",
        "console",
        "files",
        "memory",
        "processors",
        "waiting",
        "ops",
        "data",
    },
    "reid": {"errors", "console", "plotting", "files", "ops", "reid"},
    "engine": {
        "streams",
        "plotting",
        "paths",
        "typed_yaml",
        "errors",
        "endings",
        "console",
        "files",
        "processors",
        "config",
        "ops",
        "methods",
        "models",
        "data",
        "reid",
        "engine",
    },
    "commands": {
        "errors",
        "console",
        "files",
        "memory",
        "processors",
        "config",
        "ops",
        "methods",
        "models",
        "data",
        "reid",
        "engine",
        "commands",
        "__version__",
    },
    "compare": {
        "plotting",
        "paths",
        "typed_yaml",
        "errors",
        "console",
        "files",
        "config",
        "recipes",
        "methods",
        "models",
        "data",
        "engine",
        "compare",
        "__version__",
    },
    "cli": {
        "paths",
        "typed_yaml",
        "errors",
        "streams",
        "endings",
        "console",
        "config",
        "recipes",
        "models",
        "engine",
        "commands",
        "compare",
        "data",
        "benchmarks",
        "cli",
        "__version__",
    },
    "__main__": {"cli"},
    "kernels": set(),
    "benchmarks": {
        "paths",
        "kernels",
        "errors",
        "plotting",
        "console",
        "config",
        "recipes",
        "files",
        "memory",
        "processors",
        "ops",
        "methods",
        "models",
        "data",
        "reid",
        "engine",
        "commands",
        "benchmarks",
        "__version__",
    },
}
# an optional library -> the one file that imports it
DOORS = {"ffcv": "fastdhm/data/_ffcv.py", "fastdhm._C": "fastdhm/ops/_extension.py"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, with the names taken from ``fastdhm`` itself."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources() -> list[Path]:
    return [path for folder in ("fastdhm", "kernels", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts[0] if parts[0] in ("kernels", "benchmarks") else parts[1]
    if package == "__init__":
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("fastdhm.")}
    assert used <= ALLOWED[package], f"{package} may not import {used - ALLOWED[package]}"


# Pairs of files that import each other, from before that was a rule: the list only becomes shorter.
CIRCLES = {
    ("fastdhm.data._build", "fastdhm.data.beton"),
    ("fastdhm.data.ffcv_loader", "fastdhm.data.loaders"),
    ("fastdhm.data.loaders", "fastdhm.data.resident_loader"),
    ("fastdhm.data.loaders", "fastdhm.data.torch_loader"),
    ("fastdhm.data.reid", "fastdhm.data.reid_synthetic"),
    ("fastdhm.data.reid", "fastdhm.data.sources"),
    ("fastdhm.engine.diagnose", "fastdhm.engine.diagnose_plots"),
}


def test_no_two_files_import_each_other():
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imports(path)
        for path in (ROOT / "fastdhm").rglob("*.py")
    }
    # `from fastdhm.data import beton` takes a file, `from fastdhm.data.beton import check` a name in one
    taken = {one: {n if n in files else n.rpartition(".")[0] for n in names} for one, names in files.items()}
    pairs = {(one, other) for one in taken for other in taken[one] & taken.keys() if one in taken[other]}
    assert {(one, other) for one, other in pairs if one < other} == CIRCLES


def test_every_command_has_its_file_and_every_file_its_command():
    from fastdhm.cli import COMMANDS

    files = {path.stem for path in (ROOT / "fastdhm" / "cli").glob("*.py")} - {"__init__", "parser"}
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
        if path.parts[-2:] in (("fastdhm", "console.py"), ("fastdhm", "streams.py")):
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
        for path in sorted((ROOT / "fastdhm" / "engine").glob("*.py"))
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
