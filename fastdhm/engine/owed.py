"""What a run owes once it is trained, and what of it is not there yet; told from its files alone."""

from pathlib import Path
from typing import Any

from fastdhm.config import TrainConfig
from fastdhm.data.sources import is_reid

NETWORK, CURVES = "network.safetensors", "curves.png"
LAST_EPOCH, RANKING = "the last epoch's validation", "the ranking of people"


def at_end(row: dict[str, Any], config: TrainConfig) -> bool:
    """Whether a row of the log stands at the end of a run: of its epochs, or of ``max_steps``."""
    return row["epoch"] >= config.epochs or (config.max_steps is not None and row["step"] >= config.max_steps)


def owed(run_dir: Path, config: TrainConfig, rows: list[dict[str, Any]]) -> list[str]:
    """What a run with ``config`` and these ``rows`` of its log still has to write; nothing where it is finished.

    A network or a ranking of an earlier end, of a run that went on after ``max_steps``, is none of its last.
    """
    last = next((row for row in rows if row["kind"] == "epoch" and "val_side" in row and at_end(row, config)), None)
    if last is None:
        return [LAST_EPOCH, NETWORK, CURVES, *([RANKING] * is_reid(config.dataset))]
    written = {kind: [row["step"] for row in rows if row["kind"] == kind] for kind in ("network", "reid")}
    # a log without any such row is of before they were kept
    network = (run_dir / NETWORK).exists() and (not written["network"] or last["step"] in written["network"])
    curves = (run_dir / CURVES).exists() or not (run_dir / "last.pt").exists()  # nothing could draw them anew
    ranking = not is_reid(config.dataset) or last["step"] in written["reid"]
    return [what for what, there in ((NETWORK, network), (CURVES, curves), (RANKING, ranking)) if not there]
