"""Where branches fork: before the last stages, or where the user says.

A fork is a module of the trunk and a value: the branch takes the module's output, which has that number in the run.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from fastdhm.errors import UserError, unknown
from fastdhm.models.attach.stages import Layout
from fastdhm.models.base.trace import Trace


def _tap(trace: Trace, value: int) -> tuple[str, int] | None:
    """The largest module that outputs ``value``, and the value that this output holds at the end of the trunk's run.

    The two values differ if an in-place function, such as a ReLU, changes the output later.
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
            raise UserError(f"the length of forks is {len(given)}: must be one fork per branch ({', '.join(names)})")
        forks = dict(zip(names, given, strict=True))
    for name in names:
        if name not in forks:
            raise UserError(f"forks has no {name} (only {', '.join(forks)}): give one fork per branch")
    return {name: _fork_at(layout, model, forks[name]) for name in names}


def _fork_before_stage(layout: Layout, model: nn.Module, name: str) -> tuple[str, int]:
    number = int(name[1:])
    starts = [stage[0].start for stage in layout.stages[1:]]
    if number > len(starts):
        found = "no stage was found, as no feature map that all its data passes through has a lower resolution"
        if starts:
            found = f"only {len(starts) + 1} stages were found (drops of the resolution between blocks: {len(starts)})"
        blocks = layout.repeated()
        numbers = ""
        if len(blocks) > 1 and (kind := blocks[0].kind):
            numbers = f" or the number of a block from 0 to {len(blocks) - 1} ({kind.__name__})"
        raise UserError(
            f"{type(model).__name__} has no place for {name}: {found}. Attach fewer branches, or give each a module's "
            f"name{numbers} in forks=, or give your own in branches="
        )
    cuts = [cut for cut in layout.trace.cuts if 0 < cut <= starts[-number]]
    for value in reversed(cuts):
        if tap := _tap(layout.trace, value):
            return tap
    raise UserError(
        f"{type(model).__name__} has no module after which {name} could fork: its modules run more than once, or its "
        "forward only calls functions. Wrap the part before the fork in a module"
    )


def _fork_at(layout: Layout, model: nn.Module, fork: str | int) -> tuple[str, int]:
    trace = layout.trace
    if isinstance(fork, int):
        blocks = layout.repeated()
        if not 0 <= fork < len(blocks):
            raise UserError(
                f"fork is {fork}: must be less than {len(blocks)}, the number of blocks of {type(model).__name__}"
            )
        tap = _tap(trace, blocks[fork].end)
        if tap is None:
            raise UserError(f"fork is {fork}: no module ends with that block. Give the name of a module")
        return tap
    value = tapped_value(trace, model, fork)
    if value not in trace.cuts:
        raise UserError(
            f"fork is {fork!r}: another path, such as a skip connection, passes beside it, so a branch cannot start "
            "from its output alone. Fork after the block that holds it"
        )
    if value >= layout.end:
        raise UserError(
            f"fork is {fork!r}, at or after the last feature map: the branch would only pool. Fork at an earlier module"
        )
    return fork, max(value, trace.at_last(value))


def tapped_value(trace: Trace, model: nn.Module, fork: str) -> int:
    """The output of a module, which a branch takes; ``ValueError`` if the module does not run exactly once."""
    names = [name for name, _ in model.named_modules() if name]
    if fork not in names:
        raise unknown(f"module to fork at in {type(model).__name__}", fork, names)
    calls = [call for call in trace.modules if call.module == fork]
    if len(calls) != 1:
        raise UserError(
            f"fork is {fork!r}, which runs {len(calls)} times in a forward pass: must be a module that runs once"
            + ("" if calls else " (a ModuleList holds modules and does not run)")
        )
    if calls[0].output is None:
        raise UserError(f"fork is {fork!r}, which does not return one tensor: must be a module that does")
    return calls[0].output
