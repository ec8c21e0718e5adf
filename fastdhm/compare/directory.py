"""The folder of a comparison: its settings, which later calls must repeat, and the folders of its runs."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from fastdhm.compare.arms import Arm, changed
from fastdhm.compare.plan import Comparison
from fastdhm.engine.saved.checkpoint import moved
from fastdhm.errors import UserError
from fastdhm.system.console import paste
from fastdhm.system.files import replacing
from fastdhm.system.folders import contents
from fastdhm.system.paths import shown
from fastdhm.system.typed_yaml import build, read_yaml

FORMAT = 1
SETTINGS, RUNS = "compare.yaml", "runs"


def run_folder(folder: Path, arm: Arm, seed: int) -> Path:
    """The folder of a run."""
    return folder / RUNS / arm.run_name(seed)


def write_settings(folder: Path, comparison: Comparison) -> None:
    """Write ``compare.yaml``."""
    values = _plain(dataclasses.asdict(comparison) | {"format": FORMAT})
    with replacing(folder / SETTINGS) as path:
        path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")


def read_settings(folder: Path) -> Comparison:
    """The comparison in ``folder``; ``ValueError`` if there is none, or this version cannot read it."""
    path = folder / SETTINGS
    if not folder.exists():
        raise UserError(f"{shown(folder)} does not exist: name the folder of a comparison")
    if not path.exists():
        raise UserError(f"{shown(folder)} is not a comparison of fastdhm: it has no {SETTINGS}")
    values = read_yaml(path)
    if values.pop("format", None) != str(FORMAT):
        raise UserError(f"{shown(path)} has another format than this fastdhm reads ({FORMAT})")
    return build(Comparison, values, f"{shown(path)} does not hold the settings of a comparison")


def check_settings(folder: Path, new: Comparison) -> None:
    """Refuse a folder that holds anything but this comparison; ``new`` may add methods and seeds to it.

    Raises:
        ValueError: the folder holds something else, or a comparison with other settings; the message names each
            difference.
    """
    if not (folder / SETTINGS).exists():
        if folder.exists() and not (folder.is_dir() and contents(folder) <= {RUNS}):
            raise UserError(f"{shown(folder)} exists and is not a comparison of fastdhm: choose another --out")
        return
    differences = settings_differences(read_settings(folder), new)
    if differences:
        raise UserError(
            f"{shown(folder)} holds a comparison with other settings ({'; '.join(differences)}): continue it with "
            f"`{paste('fastdhm', 'compare', '--resume', folder)}`, or choose another --out"
        )


def settings_differences(old: Comparison, new: Comparison) -> list[str]:
    """What ``new`` changes in ``old`` or leaves out; more arms and seeds are no difference."""
    differences = [] if old.table == new.table else [f"table: {old.table} -> {new.table}"]
    arms = {arm.name: arm for arm in new.arms}
    gone = [arm.name for arm in old.arms if arm.name not in arms]
    if gone:
        differences.append(f"methods without {', '.join(gone)}, which {'is' if len(gone) == 1 else 'are'} in it")
    lost = [str(seed) for seed in old.seeds if seed not in new.seeds]
    if lost:
        every = ",".join(map(str, dict.fromkeys([*old.seeds, *new.seeds])))
        which = "which is" if len(lost) == 1 else "which are"
        differences.append(f"seeds without {', '.join(lost)}, {which} in it: --seeds {every} keeps all")
    found: dict[str, list[str]] = {}
    for arm in old.arms:
        if arm.name in arms:
            now = arms[arm.name].config  # moved images are recognised by their identity, in each run
            now = dataclasses.replace(now, **{name: getattr(arm.config, name) for name in moved(arm.config, now)})
            for difference in changed(arm.config, now):
                found.setdefault(difference, []).append(arm.name)
    everywhere = len(old.arms) - len(gone)
    return differences + [
        text if len(names) == everywhere else f"{text} of {', '.join(names)}" for text, names in found.items()
    ]


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
