"""What a trained run must have written, and what of that is still missing, by its files alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdhm.config import TrainConfig
from fastdhm.data.sources.source import is_reid
from fastdhm.engine.saved.names import CURVES, LAST, NETWORK

LAST_EPOCH, RANKING = "the last epoch's validation", "the ranking of people"


def at_end(row: dict[str, Any], config: TrainConfig) -> bool:
    """Whether a row of the log stands at the end of a run: of its epochs, of ``max_steps``, or where ``hours`` or
    ``patience`` ended it."""
    cut = config.max_steps is not None and row["step"] >= config.max_steps
    return cut or row.get("epoch", 0) >= config.epochs or "ended" in row


def owed(run_dir: Path, config: TrainConfig, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a run with ``config`` and these ``rows`` of its log still has to write; empty if it is finished.

    A run that goes on after ``max_steps`` deletes the network of that end; a ranking counts for the step in its row.
    """
    last = next((row for row in rows if row["kind"] == "epoch" and "val_side" in row and at_end(row, config)), None)
    ends = [row["step"] for row in rows if at_end(row, config)]
    ranked = any(row["kind"] == "reid" and row["step"] >= ends[0] for row in rows if ends)
    there = {
        LAST_EPOCH: last is not None,
        NETWORK: (run_dir / NETWORK).exists(),
        CURVES: (run_dir / CURVES).exists() or not (run_dir / LAST).exists(),  # nothing could draw them anew
        RANKING: ranked or not is_reid(config.dataset),
    }
    return [what for what, found in there.items() if not found]
