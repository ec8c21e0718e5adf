"""What stands around this process: numbers that users set in environment variables, and libraries."""

import importlib.util
import os

from fastdhm.errors import UserError


def positive(name: str, usual: float, unit: str) -> float:
    """The number of ``unit`` in the environment variable ``name``, or ``usual`` where it is not set.

    Raises:
        ValueError: it is not a number above 0.
    """
    given = os.environ.get(name)
    try:
        number = usual if given is None else float(given)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise UserError(f"{name} is {given!r}: must be a number of {unit} above 0")
    return number


def installed(library: str) -> bool:
    """Whether ``library`` can be imported: a folder of its name is not it, such as the ``wandb/`` that wandb makes."""
    found = importlib.util.find_spec(library)
    return found is not None and found.origin is not None
