"""Curves, settings and videos of a run in Weights & Biases (``--wandb True``), beside the run directory's own records.

Project, account and mode are those of the variables of wandb: ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_MODE``
(``offline`` needs no account and no network; ``wandb sync`` sends it later).
"""

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tools import BadInput, one_line, require, write_text

PROJECT = "coworld"  # if WANDB_PROJECT is not set
ID_FILE = "wandb.json"  # in the run directory: the run's id there, so that a resumed run continues it
STEP = "step"  # the x axis of all curves


def check_wandb() -> ModuleType:
    """The package wandb. Raises BadInput if it is not installed, or switched off by its own variables."""
    require("wandb", "wandb", "--wandb True")
    import wandb

    if not hasattr(wandb, "init"):  # a folder called wandb, as the package itself writes them
        folder = next(iter(wandb.__path__), "")
        raise BadInput(f"--wandb True: {folder} is a folder of that name, not the package: pip install wandb")
    for variable, off in (("WANDB_MODE", ("disabled",)), ("WANDB_DISABLED", ("true", "1"))):
        if os.environ.get(variable, "").strip().lower() in off:
            raise BadInput(f"--wandb True has no effect with {variable}={os.environ[variable]}; remove one of the two")
    return wandb


class WandbMirror:
    """A run of Weights & Biases: the one of the run directory ``directory``, which is made or continued.

    What it gets is sent by a process of its own. If that fails while the run trains, a warning is printed once and the
    run goes on without it.

    Args:
        config: the settings of the run.

    Raises:
        BadInput: wandb is not installed, nobody is logged in, or its server refuses.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]):
        self.wandb = check_wandb()
        try:
            # `console` off: wandb does not replace stdout and stderr. Nothing of the code is sent.
            options = self.wandb.Settings(console="off", save_code=False, disable_code=True, disable_git=True)
            self.run = self.wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT, name=directory.resolve().name, dir=str(directory),
                id=run_id(directory), resume="allow", config=dict(config), allow_val_change=True, settings=options,
            )  # fmt: skip
            self.run.define_metric(STEP)
            self.run.define_metric("*", step_metric=STEP)
        except (self.wandb.errors.Error, OSError, ValueError) as error:
            raise BadInput(
                f"--wandb True: {one_line(error)}; log in with `wandb login`, or set WANDB_MODE=offline"
            ) from None

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """A point of each named curve at ``step``."""
        self._send(lambda run: run.log({STEP: step, **values}))

    def video(self, step: int, name: str, path: Path) -> None:
        """The GIF at ``path``."""
        self._send(lambda run: run.log({STEP: step, name: self.wandb.Video(str(path), format="gif")}))

    def close(self) -> None:
        """Send what is left. A run that ends by an error or a signal is marked as failed until it is resumed."""
        self._send(lambda run: run.finish(exit_code=int(sys.exc_info()[0] is not None)))
        self.run = None

    def _send(self, call: Callable[[Any], object]) -> None:
        if self.run is None:
            return
        try:
            call(self.run)
        except Exception as error:  # of whatever kind: the run does not depend on it
            print(f"warning: wandb failed, the run goes on without it: {one_line(error)}", file=sys.stderr)
            self.run = None


def run_id(directory: Path) -> str:
    """The id of the run in ``directory``; a new one if it has none."""
    path = directory / ID_FILE
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(path.read_text())["id"])
    found = uuid.uuid4().hex[:12]
    write_text(path, json.dumps({"id": found}) + "\n")
    return found
