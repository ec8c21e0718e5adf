"""tests/ mirrors the source: a folder for each folder, and for each file ``test_FILE.py`` or a place named here.

``test_FILE_more.py`` stands for ``FILE.py`` too.
"""

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from source_tree import ROOT, module_name, sources

TESTS = Path(__file__).parent
# folders of tests that are of no folder of Python files -> what they are of
OF_THEIR_OWN = {
    "cuda": "csrc/*/cuda, and how setup.py builds them",
    "docs": "docs/ and README.md",
    "helpers": "what several test files share; no tests",
    "tools": "tools/",
    "world": "the machine around a run: drives, processes, memory",
}
# files of tests that are of no one file -> what they are of
OF_SEVERAL = {
    "test_house": "the rules of the whole package",
    "test_mirror": "the rules of tests/",
    "cli/test_cli": "every command, through main()",
    "config/test_fields": "every field: its rule, its flag and what it does beside the others",
    "config/test_old_run": "the config as earlier versions wrote it",
    "data/test_open_people": "open.py's people, through every loader",
    "engine/test_ablations": "branches alone, corrupt labels: through whole runs",
    "engine/test_augmented": "augmented runs, resumed and by every loader",
    "engine/test_failures": "whatever ends a run from outside",
    "engine/test_host_waits": "where a whole run waits for the device",
    "engine/test_same_run": "one run on several processes, whatever its options",
    "engine/test_resume": "what may differ at a resume",
    "engine/test_survival": "several processes: whatever ends one of them",
    "engine/test_startup": "what a run imports before its first step",
    "kernels/test_interpreter": "the kernels without a GPU",
    "models/families/test_families": "what holds of every family",
    "models/families/test_resnets": "both families of ResNets, against the paper's tables",
    "ops/test_raw_ops": "every op as torch.ops.fastdhm has it",
}
# source file, or folder -> the tests that are its tests, where they are not beside it under its name
THROUGH = {
    # faces and words without behaviour of their own
    "__main__": "cli/test_cli",
    "errors": "cli/test_cli",
    "compare.words": "compare/test_report",
    "data.options": "data/test_open",
    "engine.plan": "engine/test_train",
    "engine.validation": "engine/test_train",
    "engine.saved.names": "engine/saved/test_record",
    "system.loading": "models/weights/test_pretrained",
    "system.progress": "system/test_console",
    # a command is its flags here; what it does is tested beside commands/, compare/, engine/ and benchmarks/
    "cli": "cli/test_cli",
    "config": "config/test_fields",
    # parts of what one test sees whole
    "commands.data": "data/test_open_people",
    "commands.diagnose_plots": "commands/test_diagnose",
    "commands.measured": "commands/test_diagnose",
    "compare.slurm_job": "compare/test_slurm",
    "compare.paper": "compare/test_plan",
    "compare.plots": "compare/test_report",
    "compare.record": "compare/test_report",
    "compare.results": "compare/test_report",
    "data.beton.source": "data/beton/test_settings",
    "data.images.signatures": "data/images/test_read",
    "data.images.tiff": "data/images/test_read",
    "data.sources.readable": "data/test_open",
    "data.sources.source": "data/sources/test_folder",
    "engine.build": "engine/test_train",
    "engine.optimizer": "engine/optim/test_by_name",
    "engine.run": "engine/test_train",
    "engine.fast.synced_norm": "engine/test_same_run",
    "engine.saved.judged": "engine/saved/test_owed",
    "kernels.mimic_loss_kernels": "kernels/test_mimic_loss",
    "models.attach.dead": "models/attach/test_fit",
    "models.base.initialise": "models/families/test_families",
    "models.base.trace": "models/attach/test_stages",
    "models.weights.files": "models/weights/test_pretrained",
    "ops._convolution": "ops/test_conv2d",
    "ops._chunked_mimic_loss": "ops/test_linear_mimic_loss",
    "ops._head_products": "ops/test_linear_mimic_loss",
    "ops._mimic_loss_by_classes": "ops/test_linear_mimic_loss",
    "ops._mimic_loss_input": "ops/test_mimic_loss",
    "ops._process_group": "ops/test_class_parallel",
    "page.early_exit": "commands/test_early_exit",
    "reid._blocks": "reid/test_ranking",
    "reid._distances": "reid/test_metrics",
    "reid._positions": "reid/test_metrics",
    "reid._protocol": "reid/test_metrics",
    "system.streams": "system/test_console",
    "system.waiting": "data/images/test_pool",
    "models.families": "models/families/test_families",  # every family is a case of the same tests
    # benchmarks of the benchmarks
    "benchmarks.agreement": "benchmarks/test_epoch",
    "benchmarks.harness.machine": "benchmarks/harness/test_timing",
    "benchmarks.kernel_report": "kernels/test_interpreter",
    "benchmarks.reference.contender": "benchmarks/reference/test_same_step",
    "benchmarks.reference.linear_peers": "benchmarks/test_linear",
    "benchmarks.reference.loss_peers": "benchmarks/test_loss",
    "benchmarks.reference.run": "benchmarks/test_startup",
    "benchmarks.reference.shared_gradients": "benchmarks/test_scale",
    "benchmarks.reference.worker": "benchmarks/test_scale",
}


# The dotted name of every source file but the packages' own.
SOURCES = [module_name(path) for path in sources() if path.name != "__init__.py"]
FOLDERS = {name.rpartition(".")[0].replace(".", "/") for name in SOURCES} - {""}
FILES = [path.relative_to(TESTS).with_suffix("").as_posix() for path in sorted(TESTS.rglob("test_*.py"))]


def beside(source: str) -> list[str]:
    """The test files that carry a source file's name, in the folder that mirrors its own."""
    *folders, name = source.split(".")
    place = "/".join([*folders, f"test_{name.lstrip('_')}"])
    return [file for file in FILES if (file == place or file.startswith(f"{place}_")) and file not in OF_SEVERAL]


def test_every_folder_mirrors_one_of_the_source():
    folders = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py")} - {"."}
    # a folder that THROUGH names may be without
    whole = {name.replace(".", "/") for name in THROUGH if name not in SOURCES}
    assert {folder for folder in folders if folder.partition("/")[0] not in OF_THEIR_OWN} | whole == FOLDERS


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_file_has_its_tests(source):
    beside_it = beside(source)
    assert not (beside_it and source in THROUGH), f"{source} has {beside_it}: take it out of THROUGH"
    listed = THROUGH.get(source) or THROUGH.get(source.rpartition(".")[0])
    assert beside_it or listed, f"{source}: write its tests beside it, or name in THROUGH those that are its own"


def test_every_test_file_is_of_a_source_file():
    named = {file for source in SOURCES for file in beside(source)}
    others = {file for file in FILES if file.partition("/")[0] not in OF_THEIR_OWN} - named
    assert others == set(OF_SEVERAL)


def test_nothing_is_listed_that_is_not_there():
    assert THROUGH.keys() <= {*SOURCES, *(source.rpartition(".")[0] for source in SOURCES)}
    assert set(THROUGH.values()) <= set(FILES)
    assert all((TESTS / folder).is_dir() for folder in OF_THEIR_OWN)


def test_programs_in_strings_import_what_is_there():
    """A move of a function is not seen in them by any tool, and a slow test tells of it late."""
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            for module, names in re.findall(
                r"^ *(?:import .*; )*from (fastdhm[\w.]*) import ([\w, ]+)", text, re.MULTILINE
            ):
                for name in names.split(", "):
                    found = hasattr(import_module(module), name.split()[0]) or find_spec(f"{module}.{name.split()[0]}")
                    assert found, f"{path.relative_to(ROOT)}:{node.lineno}: {module} has no {name}"
