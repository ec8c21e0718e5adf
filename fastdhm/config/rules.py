"""What a value of a run must be: the rules that several fields share, and how a rule is checked."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_RAMP = 1e6  # epochs; one longer than the run is only its beginning, but this is no ramp any more


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be: in words that follow "must be", and as a test."""

    words: str
    holds: Callable[[Any], object]


AT_LEAST_ONE = Rule("1 or more", lambda n: n >= 1)
AT_LEAST_ZERO = Rule("0 or more", lambda n: n >= 0)
SEED = Rule("in [0, 2**63)", lambda n: 0 <= n < 2**63)
POSITIVE = Rule("a finite number above 0", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Rule("a finite number, 0 or more", lambda x: 0 <= x < math.inf)
SHARE = Rule("in [0, 1]", lambda x: 0 <= x <= 1)
BELOW_ONE = Rule("in [0, 1)", lambda x: 0 <= x < 1)
RAMP = Rule(f"0 to {MAX_RAMP:,.0f} epochs", lambda x: 0 <= x <= MAX_RAMP)


def setting(default: Any, rule: Rule) -> Any:
    """A field of a run whose values keep a rule."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def check(name: str, value: Any, rule: Rule, of: Any) -> None:
    """``ValueError`` that ``name`` is ``value``, if the rule does not hold for ``of``: the value, or the whole run.

    ``None``, which stands for "not given", keeps every rule.
    """
    try:
        fine = value is None or rule.holds(of)
    except (TypeError, AttributeError, OverflowError):  # Python's user gave a value of another type
        fine = False
    if not fine:
        raise ValueError(f"{name} is {value}: must be {rule.words.format(run=of)}")
