"""A hook of mkdocs: gives the site the layout of the repository, so that a link works in both.

README.md is the front page. docs/ is below it, and the files outside docs/ that pages link to are beside it.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

BESIDE = ("README.md", "CHANGELOG.md", "LICENSE", "benchmarks/results")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site: those that mkdocs found in docs/, and those beside them."""
    root = Path(config.config_file_path).parent
    docs = Path(config.docs_dir)
    found = [file for file in files if file.src_dir == config.docs_dir]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = [docs / file.src_uri for file in found]
    for name in BESIDE:
        path = root / name
        paths += sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
    moved = [File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)) for path in paths]
    return Files([*theme, *moved])
