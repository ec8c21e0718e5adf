"""Commands that several processes compute together: started here by ``--processes``, or by torchrun or srun."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastdhm.cli.parser import Parser
from fastdhm.errors import UserError


def add_processes(parser: Parser) -> None:
    """The flag ``--processes``."""
    parser.flag("--processes", "Processes to start on this machine: a number, or auto for one a GPU.", metavar="N")


@contextmanager
def told_once() -> Iterator[None]:
    """A mistake that is found inside, before the processes have met, is said by one of them and ends all."""
    try:
        yield
    except UserError as error:
        from fastdhm.system.place import place

        if place() is not None:
            from fastdhm.engine.distributed import joined

            with joined("cpu", error):
                pass
        raise


def in_processes(
    command: list[str],
    wanted: str | None,
    device: str,
    restarts: int = 0,
    check: Callable[[int], None] = lambda number: None,
) -> int | None:
    """Run ``fastdhm COMMAND`` in so many processes as are ``wanted``; its exit status.

    ``check`` raises where it cannot be run in so many; it is asked before they start.
    None where this process computes itself, alone or as one of several: it then uses its share of the processors.
    """
    from fastdhm.engine.device import count_gpus, most_processes, use_processors
    from fastdhm.engine.distributed import launch
    from fastdhm.system.place import place

    given, wanted = wanted is not None, "1" if wanted is None else wanted
    if wanted != "1" and device.startswith("cuda:"):
        raise UserError(f"device is {device!r} for {wanted} processes: say cuda, and each takes a GPU")
    number = count_gpus(device) if wanted == "auto" else int(wanted) if wanted.isdecimal() else 0
    here, most = place(), most_processes(device)
    if not 1 <= number <= most and here is None:
        raise UserError(f"processes is {wanted or repr(wanted)}: must be from 1 to {most} on this machine, or auto")
    if restarts < 0 or (restarts and number == 1):
        raise UserError(f"restarts is {restarts}: must be 0 or more, and for several --processes")
    if here is not None and given and number != here.local_count:
        raise UserError(f"processes is {wanted}, and {here.local_count} were started here: leave --processes out")
    if here is None and number > 1:
        check(number)
        return launch(number, command, restarts)
    use_processors()
    return None
