"""Figures that are made and not drawn: drawing is a quarter of what a small run costs."""

from pathlib import Path


def undrawn(figure, path, dpi):
    """In place of ``system.plotting.save_figure``."""
    Path(path).write_bytes(b"\x89PNG")
