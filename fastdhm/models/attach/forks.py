"""Where branches fork: before the last stages, or where they are told to.

Every fork is a module of the trunk, whose output a branch takes, and the number of that value in the trunk's run.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from fastdhm.errors import UserError, unknown
from fastdhm.models.attach.stages import Layout
from fastdhm.models.base.trace import Trace


def _tap(trace: Trace, value: int) -> tuple[str, int] | None:
    """The largest module that gives ``value``, and the value that its output holds once the trunk has run.

    What works in place on the output afterwards, such as a ReLU, has then changed it.
    """
    taps = [
        call.module for call in trace.modules if call.module and call.output == value and trace.runs(call.module) == 1
    ]
    if not taps:
        return None
    return taps[0], max(value, trace.at_last(value))


def find_forks(
    layout: Layout, model: nn.Module, names: list[str], forks: Mapping | Sequence | None
) -> dict[str, tuple[str, int]]:
    """Branch -> (module to tap, value that the branch takes)."""
    if forks is None:
        return {name: _fork_before_stage(layout, model, name) for name in names}
    if not isinstance(forks, Mapping):
        given = [forks] if isinstance(forks, (str, int)) else list(forks)
        if len(given) != len(names):
            raise UserError(f"{len(given)} forks for {len(names)} branches ({', '.join(names)}): give one for each")
        forks = dict(zip(names, given, strict=True))
    for name in names:
        if name not in forks:
            raise UserError(f"forks says nothing of {name} (only of {', '.join(forks)}): give one for each branch")
    return {name: _fork_at(layout, model, forks[name]) for name in names}


def _fork_before_stage(layout: Layout, model: nn.Module, name: str) -> tuple[str, int]:
    number = int(name[1:])
    starts = [stage[0].start for stage in layout.stages[1:]]
    if number > len(starts):
        found = "no stage was found: of the feature maps that all its data passes through, none has a lower resolution"
        if starts:
            found = (
                f"only {len(starts) + 1} stages were found (the resolution drops {len(starts)} times between blocks)"
            )
        blocks = layout.repeated()
        numbers = ""
        if len(blocks) > 1 and (kind := blocks[0].kind):
            numbers = f" or the number of a block from 0 to {len(blocks) - 1} ({kind.__name__})"
        raise UserError(
            f"{type(model).__name__} has no place for {name}: {found}. Give forks= with a module's name{numbers} for "
            "each branch, fewer branches, or branches of your own (branches=)"
        )
    cuts = [cut for cut in layout.trace.cuts if 0 < cut <= starts[-number]]
    for value in reversed(cuts):
        if tap := _tap(layout.trace, value):
            return tap
    raise UserError(
        f"{type(model).__name__} gives no module's output to fork {name} from: its modules run more than once, or its "
        "forward is functions alone. Wrap the part up to the fork in a module of its own"
    )


def _fork_at(layout: Layout, model: nn.Module, fork: str | int) -> tuple[str, int]:
    trace = layout.trace
    if isinstance(fork, int):
        blocks = layout.repeated()
        if not 0 <= fork < len(blocks):
            raise UserError(f"fork {fork}: {type(model).__name__} has {len(blocks)} blocks, counted from 0")
        tap = _tap(trace, blocks[fork].end)
        if tap is None:
            raise UserError(f"fork {fork}: no module ends with that block; give a module's name")
        return tap
    value = tapped_value(trace, model, fork)
    if value not in trace.cuts:
        raise UserError(
            f"fork {fork!r} lies beside another path, such as a skip connection, so what follows it cannot be built "
            "from its output alone: fork after the block that holds it"
        )
    if value >= layout.end:
        raise UserError(f"fork {fork!r} is the last feature map or beyond: nothing but pooling would be in the branch")
    return fork, max(value, trace.at_last(value))


def tapped_value(trace: Trace, model: nn.Module, fork: str) -> int:
    """The output of a module's one run, which a branch takes; ``ValueError`` where there is not just one."""
    names = [name for name, _ in model.named_modules() if name]
    if fork not in names:
        raise unknown(f"module to fork at in {type(model).__name__}", fork, names)
    calls = [call for call in trace.modules if call.module == fork]
    if len(calls) != 1:
        raise UserError(
            f"fork {fork!r} runs {len(calls)} times in a forward pass, and a branch takes the output of one: fork at a "
            "module that runs once" + ("" if calls else " (a ModuleList holds modules and does not run)")
        )
    if calls[0].output is None:
        raise UserError(f"fork {fork!r} returns something other than one tensor: fork at a module that returns one")
    return calls[0].output
