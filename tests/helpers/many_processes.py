"""Programs run by several real processes on this machine, as one run; a test ends them after a time limit."""

import os
import subprocess
import sys
import textwrap

LIMIT_S = 240  # of a test with processes: far more than it takes, on a machine that is busy


def processes(program: str, number: int, *, seconds: int = 60, wait: bool = True, **environ: str):
    """``program`` in so many processes; those that print are told apart by what they print."""
    prologue = "import os, sys, time, torch\nfrom fastdhm.engine import distributed as d\ntorch.set_num_threads(1)\n"
    port = str(20000 + os.getpid() % 20000)
    shared = os.environ | {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "FASTDHM_WAIT_SECONDS": str(seconds)} | environ
    program = prologue + textwrap.dedent(program)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=shared | {"RANK": str(n), "LOCAL_RANK": str(n)},
        )
        for n in range(number)
    ]  # fmt: skip
    if not wait:
        return children
    return [(child, *child.communicate(timeout=LIMIT_S)) for child in children]


def outputs(program: str, number: int, **options) -> list[str]:
    """What each process printed; none may fail."""
    ended = processes(program, number, **options)
    assert [child.returncode for child, *_ in ended] == [0] * number, "\n".join(err for *_, err in ended)
    return [out for _, out, _ in ended]
