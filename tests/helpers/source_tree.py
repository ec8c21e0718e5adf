"""The source files of the package, which lie in three folders, and their names."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def sources() -> list[Path]:
    return [path for folder in ("fastdhm", "kernels", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path) -> str:
    """The dotted name of a file, without ``fastdhm``: ``data.loaders.crops``, ``kernels.mimic_loss``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in (parts[1:] if parts[0] == "fastdhm" else parts) if part != "__init__")
