"""What a run saves if its cheapest branch answers where it is sure: a part of its page, from what eval left there."""

import json
from pathlib import Path

from fastdhm.engine.saved.names import EARLY_EXIT
from fastdhm.page.html import figures, note
from fastdhm.page.svg import curves


def early_exit_section(run_dir: Path, step: int) -> str:
    """The error over the mean of the multiply-adds; "" if nothing is known. ``step``: of the run's last validation."""
    try:
        values = json.loads((run_dir / EARLY_EXIT).read_text("utf-8"))
        first, last, own = (values[name] for name in ("first", "last", "step"))
        alone = sorted(values["alone"].items())
        points = {name: [(100 * macs / values["last_macs"], error)] for name, (macs, error) in alone}
        points["cascade"] = [
            (100 * row["multiply_adds"] / values["last_macs"], row["top1_error"]) for row in values["judged"].values()
        ]
        when = "" if own is None else f", after {own:,} steps" + ", before the last validation" * (own < step)
        told = f"On {values['images']}{when}: {first} answers where its probability reaches a threshold, else {last}."
        drawn = curves(points, f"mean multiply-adds, % of {last}'s", "top-1 error, %", from_zero=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):  # none, or damaged
        return ""
    return note(f"{told} The cascade's dots are the thresholds {', '.join(values['judged'])}.") + figures(drawn)
