"""The folder of a comparison: its settings, which a later call must agree with, and where its runs lie."""

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
from fastdhm.system.typed_yaml import build, read_yaml

FORMAT = 1
SETTINGS, RUNS = "compare.yaml", "runs"


def run_folder(folder: Path, arm: Arm, seed: int) -> Path:
    """Where a run lies."""
    return folder / RUNS / arm.run_name(seed)


def write_settings(folder: Path, comparison: Comparison) -> None:
    """Write ``compare.yaml``."""
    values = _plain(dataclasses.asdict(comparison) | {"format": FORMAT})
    with replacing(folder / SETTINGS) as path:
        path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")


def read_settings(folder: Path) -> Comparison:
    """The comparison in ``folder``; ``ValueError`` if there is none, or one that this version does not read."""
    path = folder / SETTINGS
    if not path.exists():
        raise UserError(f"{folder} is not a comparison of fastdhm: it holds no {SETTINGS}")
    values = read_yaml(path)
    if values.pop("format", None) != str(FORMAT):
        raise UserError(f"{path} has another format than this fastdhm reads ({FORMAT})")
    return build(Comparison, values, f"{path} does not hold the settings of a comparison")


def check_settings(folder: Path, new: Comparison) -> None:
    """Refuse a folder that holds anything else; a comparison there may be given more methods and seeds.

    Raises:
        ValueError: a folder of something else, or a comparison whose settings differ; each difference is named.
    """
    if not (folder / SETTINGS).exists():
        if folder.exists() and not (folder.is_dir() and contents(folder) <= {RUNS}):
            raise UserError(f"{folder} is there and is not a comparison of fastdhm: choose another --out")
        return
    differences = settings_differences(read_settings(folder), new)
    if differences:
        raise UserError(
            f"{folder} holds a comparison with other settings ({'; '.join(differences)}): go on with that one by "
            f"`{paste('fastdhm', 'compare', '--resume', folder)}`, or choose another --out"
        )


def settings_differences(old: Comparison, new: Comparison) -> list[str]:
    """What ``new`` changes or leaves out of ``old``; more arms and seeds are no difference."""
    differences = [] if old.table == new.table else [f"table: {old.table} -> {new.table}"]
    arms = {arm.name: arm for arm in new.arms}
    gone = [arm.name for arm in old.arms if arm.name not in arms]
    if gone:
        differences.append(f"methods without {', '.join(gone)}, which is in there")
    lost = [str(seed) for seed in old.seeds if seed not in new.seeds]
    if lost:
        every = ",".join(map(str, dict.fromkeys([*old.seeds, *new.seeds])))
        differences.append(f"seeds without {', '.join(lost)}, which are in there: --seeds {every} adds to them")
    found: dict[str, list[str]] = {}
    for arm in old.arms:
        if arm.name in arms:
            now = arms[arm.name].config  # images that were moved are told by their identity, in each run
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
