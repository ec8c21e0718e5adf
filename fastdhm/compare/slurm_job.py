"""What a SLURM job of a comparison does: it trains one run, and has it saved when the job must make way.

It is loaded in the job before anything else, so it imports only the standard library.
"""

import os
import signal
import subprocess
import time
from typing import Any

COMPANY = "a SLURM job"  # on a node that it may share


class RunInJob:
    """One run, in a process of its own; what it prints is added to ``log``."""

    def __init__(self, command: list[str], log: str, variables: dict[str, str]):
        self.command, self.log, self.variables = command, log, variables

    def __call__(self) -> int:
        """Train to the end; returns the exit status."""
        environ = os.environ | {name: value.format(pid=os.getpid()) for name, value in self.variables.items()}
        with open(self.log, "ab") as log:
            self.run = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environ
            )
        while self.run.poll() is None:  # wait() holds a lock that checkpoint would meet
            time.sleep(0.5)
        return self.run.returncode

    def checkpoint(self) -> Any:
        """Called by submitit before the job is put back into the queue: the run saves, and goes on in the next."""
        from submitit.helpers import DelayedSubmission

        os.kill(self.run.pid, signal.SIGTERM)
        os.waitid(os.P_PID, self.run.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(RunInJob(self.command, self.log, self.variables))
