"""Where a run's rows go beside its own files: Weights & Biases and MLflow, if ``log_to`` names them.

Each works in a thread of its own, its library's import included: no step waits for it, and its failure ends no run.
"""

import dataclasses
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fastdhm.config import TrainConfig
from fastdhm.engine.saved.owed import at_end
from fastdhm.errors import UserError
from fastdhm.system.environment import installed
from fastdhm.system.files import write_text

PROJECT = "fastdhm"
AT_ONCE = 100  # parameters that MLflow takes in a call
END_S = 60.0  # that the end of a run waits for rows on their way
Add = Callable[[str, int, dict[str, Any]], None]  # kind, step, scalars


def check_installed(names: Iterable[str]) -> None:
    """``ValueError`` with pip's command if one of the libraries is not installed."""
    missing = [name for name in dict.fromkeys(names) if not installed(name)]
    if missing:
        raise UserError(f"--log-to {','.join(missing)} needs what is not installed: pip install {' '.join(missing)}")


def why(error: BaseException) -> str:
    """An error of another library in a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class Watcher:
    """Sends rows to one of them; ``begin`` is a context that gives what adds a row."""

    def __init__(self, name: str, begin: Callable[[], AbstractContextManager[Add]], say: Callable[[str], None]):
        self.name, self.say = name, say
        self.rows: SimpleQueue[tuple[str, int, dict[str, Any]] | None] = SimpleQueue()
        self.failed = False
        self.thread = threading.Thread(target=self._send, args=(begin,), daemon=True)

    def write(self, kind: str, step: int, scalars: dict[str, Any]) -> None:
        """Send a row; the first begins the thread, so the first step does not wait for an import."""
        if not self.failed:
            self.rows.put((kind, step, scalars))
        if self.thread.ident is None:
            self.thread.start()

    def close(self) -> None:
        """Wait for the rows on their way, but not for ever."""
        if self.thread.ident is None:
            return
        self.rows.put(None)
        self.thread.join(END_S)
        if self.thread.is_alive():
            self.say(f"{self.name} did not take all rows in {END_S:.0f} s, and may lack the last: log.jsonl has them")

    def _send(self, begin: Callable[[], AbstractContextManager[Add]]) -> None:
        try:
            with begin() as add:
                for row in iter(self.rows.get, None):
                    add(*row)
        except BaseException as error:  # whatever a library raises, in its own thread
            self.failed = True
            self.say(f"{self.name} cannot be used ({why(error)}): the run goes on without it")


def watchers(config: TrainConfig, run_dir: Path, say: Callable[[str], None]) -> list[Watcher]:
    """Those that a run's ``log_to`` names."""
    begins = {"wandb": _wandb, "mlflow": _mlflow}

    def begin(name: str) -> Callable[[], AbstractContextManager[Add]]:
        return lambda: begins[name](config, run_dir)

    return [Watcher(name, begin(name), say) for name in dict.fromkeys(config.log_to)]


@contextmanager
def _wandb(config: TrainConfig, run_dir: Path) -> Iterator[Add]:
    """A run of Weights & Biases, whose own environment variables say where; a resumed one goes on with it."""
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    online = wandb.setup(settings).settings.mode not in ("offline", "dryrun", "disabled")
    if online and not wandb.login(prompt=False, verify=False):
        raise UserError("no key is there: call `wandb login`, or set WANDB_MODE=offline")
    known = _known(run_dir, "wandb")
    if known is None:
        known = _keep(run_dir, "wandb", uuid.uuid4().hex[:8])
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), id=known, resume="allow", name=run_dir.name, dir=run_dir,
        config=dataclasses.asdict(config), settings=settings,
    )  # fmt: skip
    run.define_metric("*", step_metric="step")  # a row may come again after a resume, and its own steps only rise
    try:
        yield lambda kind, step, scalars: run.log({"step": step} | _named(kind, scalars))
    finally:
        run.finish()


@contextmanager
def _mlflow(config: TrainConfig, run_dir: Path) -> Iterator[Add]:
    """A run of MLflow, at ``MLFLOW_TRACKING_URI`` or where MLflow puts it; a resumed one goes on with it."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    client, known, done = MlflowClient(), _known(run_dir, "mlflow"), False
    if known is None:
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        with suppress(MlflowException):  # it is there, or another run has just made it
            client.create_experiment(project)
        experiment = client.get_experiment_by_name(project)
        known = _keep(run_dir, "mlflow", client.create_run(experiment.experiment_id, run_name=run_dir.name).info.run_id)
        params = [Param(name, str(value)) for name, value in dataclasses.asdict(config).items()]
        for first in range(0, len(params), AT_ONCE):
            client.log_batch(known, params=params[first : first + AT_ONCE])
    client.update_run(known, "RUNNING")

    def add(kind: str, step: int, scalars: dict[str, Any]) -> None:
        nonlocal done
        now, named = int(1000 * time.time()), _named(kind, scalars)
        # its names have no ">"
        metrics = [Metric(name.replace("->", "_to_"), float(value), now, step) for name, value in named.items()]
        client.log_batch(known, metrics=metrics)
        done = done or (kind == "epoch" and at_end({"step": step, **scalars}, config))

    try:
        yield add
    finally:
        client.set_terminated(known, "FINISHED" if done else "KILLED")


def _named(kind: str, scalars: dict[str, Any]) -> dict[str, Any]:
    return {f"{kind}/{name}": value for name, value in scalars.items()}


def _known(run_dir: Path, name: str) -> str | None:
    """By what name a watcher knows the run, if it has met it."""
    with suppress(OSError):
        return (run_dir / f"{name}.id").read_text("utf-8").strip() or None
    return None


def _keep(run_dir: Path, name: str, known: str) -> str:
    write_text(run_dir / f"{name}.id", known)
    return known
