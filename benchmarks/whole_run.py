"""Where the time of a whole run goes: updates, data, acting, simulators, evaluation, logging, checkpoints.

    python benchmarks/whole_run.py --source_task walker_walk --target_task walker_downhill --configs defaults dmc small

A short co-training run with every kind of phase, in proportions near those of the full schedule (an update every
``train_every`` iterations, an evaluation every few hundred updates), on a dataset of random actions that is collected
first. Times are exclusive: what a part calls is counted as its own part. Simulators count as far as they are waited
for, which an update beside them may hide.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

import co_training
import collect
import config as settings
from agents.agent import Agent, SourceAgent, TargetAgent
from training.collector import Collector
from training.trainer import Run

PARTS = {
    "update": [(SourceAgent, "update"), (TargetAgent, "update"), (TargetAgent, "update_model")],
    "data": [(Run, "batch")],
    "acting": [(Agent, "act")],
    "simulators": [(Collector, "start"), (Collector, "finish"), (Run, "_set_up")],
    "evaluation": [(Run, "score")],
    "logging": [(Run, "write_point"), (Run, "draw_predictions"), (Run, "draw_summary"), (co_training, "record_score")],
    "checkpoints": [(Run, "save"), (Run, "save_models")],
}
SHORT = {
    "time_limit": 250, "prefill": 500, "pretrain": 10, "pretrain_steps": 500, "warmup_rounds": 1, "warmup_updates": 50,
    "warmup_steps": 250, "rounds": 2, "target_iterations": 500, "source_iterations": 250, "eval_episodes": 4,
    "log_every": 250, "video_every": 1000,
}  # fmt: skip


class Clock:
    """Seconds by part, each without the parts it calls."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.inner = [0.0]  # of each part under way, the time of parts it called

    def watch(self, owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any, **more: Any) -> Any:
            return self.time(part, lambda: original(*arguments, **more))

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


def main() -> None:
    command = settings.parser(__doc__)
    config, _ = settings.parse(command)
    short = [f for key, value in SHORT.items() if f"--{key}" not in sys.argv for f in (f"--{key}", str(value))]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        given = [*sys.argv[1:], *short, "--logdir", f"{folder}/run"]
        if not config.offline_traindir:
            blocks = ["--configs", "defaults", *config.configs]
            common = [*blocks, "--time_limit", str(SHORT["time_limit"]), "--size", ",".join(map(str, config.size))]
            collect.main(["--task", config.target_task, "--out", f"{folder}/data", "--episodes", "8", *common])
            given += ["--offline_traindir", f"{folder}/data"]
        for part, functions in PARTS.items():
            for owner, name in functions:
                clock.watch(owner, name, part)
        with redirect_stdout(StringIO()):
            clock.time("everything else", lambda: co_training.main(given))
    whole = sum(clock.seconds.values())
    print(f"\n{config.source_task} -> {config.target_task}, {' '.join(config.configs)}: {whole:.0f} s")
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"{part:16} {seconds:8.1f} s {seconds / whole:6.1%}")


if __name__ == "__main__":
    main()
