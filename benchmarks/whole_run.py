"""The time of a whole run by part: updates, data, acting, simulators, evaluation, logging, checkpoints.

    python benchmarks/whole_run.py --source_task walker_walk --target_task walker_downhill --configs defaults dmc small

A short co-training run with every kind of phase, in proportions near those of the full schedule (an update every
``train_every`` iterations, an evaluation every few hundred updates). Without --offline_traindir, a dataset of random
actions is collected first. Every setting of co_training.py is a flag. The time of a part excludes the other parts
that it calls. The time of simulators is the time spent waiting for them; they run during the updates.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import co_training  # runs Algorithm 1 in this process, where its parts can be timed
import config as settings
from agents.agent import Agent
from agents.baselines import FinetunedAgent
from config import Config
from tools import exit_on_bad_input
from training import runs
from training.collector import Collector
from training.domains import Domain
from training.evaluator import Evaluator
from training.logger import Logger
from training.methods import find_method
from training.selector import SourceSelector
from training.trainer import Trainer
from training.used_settings import unused_settings

ROOT = Path(__file__).resolve().parent.parent
PARTS = {  # part -> its functions, as (class or module, name)
    "update": [
        *((Agent, "descend_model_loss"), (Agent, "update_behavior"), (FinetunedAgent, "_penalties")),
        *((Agent, "embed"), (SourceSelector, "select")),
    ],
    "data": [(Domain, "next_batch")],
    "acting": [(Agent, "act")],
    "simulators": [
        *((Collector, "start"), (Collector, "finish")),
        *((runs, "open_simulators"), (Evaluator, "simulator")),
    ],
    "evaluation": [(Evaluator, "evaluate")],
    "logging": [
        *((Trainer, "_write_point"), (Trainer, "_log_open_loop"), (runs, "draw_summary")),
        *((Logger, "score"), (Logger, "video")),
    ],
    "checkpoints": [(Trainer, "save"), (Trainer, "save_models")],
}
SHORT = {
    "time_limit": 250, "prefill": 500, "pretrain": 10, "pretrain_steps": 500, "warmup_rounds": 1, "warmup_updates": 50,
    "warmup_steps": 250, "rounds": 2, "target_iterations": 500, "source_iterations": 250, "eval_episodes": 4,
    "log_every": 250, "video_every": 1000,
}  # fmt: skip


class Clock:
    """Seconds by part, each without the parts that it calls."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.inner = [0.0]  # for each running part, the time of the parts that it called

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Time all calls of a function of a class or module."""
        original = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            return self.time(part, lambda: original(*arguments, **options))

        setattr(owner, name, watched)

    def time(self, part: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        self.inner.append(0.0)
        try:
            return work()
        finally:
            whole = time.perf_counter() - start
            self.seconds[part] = self.seconds.get(part, 0.0) + whole - self.inner.pop()
            self.inner[-1] += whole


def collect(config: Config, folder: Path) -> None:
    """Eight episodes of the target task by random actions. Exits if the command fails."""
    flags = {"task": config.target_task, "out": folder, "episodes": 8, "time_limit": config.time_limit}
    flags |= {"size": ",".join(map(str, config.size))}
    arguments = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, ROOT / "collect.py", "--configs", "defaults", *config.configs, *arguments]
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    config, _ = settings.parse(settings.parser(__doc__))
    unused = unused_settings(config, find_method(config.method))
    short = {key: value for key, value in SHORT.items() if key not in unused}
    arguments = [*(text for key, value in short.items() for text in (f"--{key}", str(value))), *sys.argv[1:]]
    config, _ = settings.parse(settings.parser(__doc__), arguments)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments += ["--logdir", f"{folder}/run"]
        if not config.offline_traindir:
            collect(config, Path(folder) / "data")
            arguments += ["--offline_traindir", f"{folder}/data"]
        for part, functions in PARTS.items():
            for owner, name in functions:
                clock.watch(owner, name, part)
        with redirect_stdout(StringIO()):
            clock.time("everything else", lambda: co_training.main(arguments))
    whole = sum(clock.seconds.values())
    print(f"\n{config.source_task} -> {config.target_task}, {' '.join(config.configs)}: {whole:.0f} s")
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"{part:16} {seconds:8.1f} s {seconds / whole:6.1%}")


if __name__ == "__main__":
    exit_on_bad_input(main)
