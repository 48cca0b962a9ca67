"""Time and memory of report.py on many run directories, which are generated.

    python benchmarks/reports.py [--runs 50 500] [--folder DIR] [--methods 9]

The runs are of 22 pairs of tasks, nine methods or ablations and three seeds; a number above 546 adds seeds. A run
directory has settings, 14 evaluations, metrics, videos, a replay and a copy of its pretraining. report.py
runs in a process of its own. Printed are the seconds from its start to its end, its processor seconds, and its peak
memory.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run this file from anywhere

import config as settings  # noqa: E402
from wrappers import max_return, parse_task  # noqa: E402

WORLD = "button-press window-close handle-press drawer-close".split()
WALKER, CHEETAH = ["walker_downhill", "walker_uphill", "walker_nofoot"], ["cheetah_downhill", "cheetah_uphill"]
PAIRS = [  # 6 of DeepMind Control, 8 of Meta-World, 8 of RoboDesk
    *product(["dmc_walker_walk"], [f"dmc_{task}" for task in WALKER]),
    *product(["dmc_cheetah_run"], [f"dmc_{task}" for task in (*CHEETAH, "cheetah_nopaw")]),
    *product([f"metaworld_{task}" for task in WORLD], ["metaworld_door-close", "metaworld_button-press-topdown"]),
    *product([f"metaworld_{task}" for task in WORLD], ["robodesk_push_green", "robodesk_open_slide"]),
]
METHODS = [  # method, settings of an ablation, level of its scores
    ("coworld", {}, 0.62),
    ("offline_dv2", {}, 0.35),
    ("dv2_finetune", {}, 0.45),
    ("multitask_dv2", {}, 0.4),
    ("coworld", {"state_alignment": "False"}, 0.5),
    ("coworld", {"reward_alignment": "False"}, 0.53),
    ("coworld", {"value_constraint": "off"}, 0.57),
    ("dv2_finetune_ewc", {}, 0.44),
    ("online_dv2", {}, 0.7),
]
NO_SOURCE = {"offline_dv2", "online_dv2"}
ROUNDS = 12


class Plan(NamedTuple):
    """A run to generate. ``level`` is the normalised score around which its last evaluation is."""

    method: str
    flags: dict[str, str]
    source: str
    target: str
    seed: int
    level: float


def plans(methods: int) -> Iterator[Plan]:
    """Endless: all runs with seeds 0 to 2, then those with seeds 3 to 5, and so on."""
    for block in count():
        done = set()
        for (source, target), (method, flags, level) in product(PAIRS, METHODS[:methods]):
            cell = (method, str(flags), target, "" if method in NO_SOURCE else source)
            if cell not in done:
                done.add(cell)
                for seed in range(3 * block, 3 * block + 3):
                    yield Plan(method, flags, source, target, seed, level)


def generate(folder: Path, number: int, methods: int) -> None:
    """Write ``number`` run directories. They do not depend on ``number``: 50 runs are the first of 500."""
    blocks = settings.read_blocks()
    rng = np.random.default_rng(0)
    for index, plan in enumerate(tqdm(islice(plans(methods), number), f"generate {number} runs", number, disable=None)):
        suite = plan.target.split("_")[0]
        names = [suite]
        flags = {
            "method": plan.method, "target_task": plan.target, "source_task": plan.source,
            "seed": plan.seed, "rounds": ROUNDS, "offline_traindir": f"data/medium-replay/{plan.target}", **plan.flags,
        }  # fmt: skip
        config = settings.Config(**settings.merge(blocks, names, flags), configs=names)
        run = folder / f"{index:04d}"
        dataset = f"# dataset: 200 episodes, 100000 steps, sum of returns {float(len(plan.target))}\n"
        write_run(run, settings.to_yaml(config) + dataset, scores(plan, rng), index)


def scores(plan: Plan, rng: np.random.Generator) -> str:
    """scores.csv: the random policy, an evaluation before each round, and one at the end."""
    best = max_return(parse_task(plan.target))
    lines = ["step,domain,phase,round,source_steps,target_updates,mean,std,success,episodes"]
    success = not plan.target.startswith("dmc")
    level = plan.level + rng.normal(0, 0.12) + 0.1 * np.sin(len(plan.target))
    for i, at in enumerate([0, *range(1, ROUNDS + 1), ROUNDS]):
        share = 0.02 if i == 0 else np.clip(level * (1 - np.exp(-i / 4)) + rng.normal(0, 0.03), 0.01, 0.98)
        phase = "evaluate" if i else "evaluate_random"
        rate = f"{round(10 * share) / 10}" if success else ""
        lines.append(
            f"{1000 * i},target,{phase},{at},{500 * i},{250 * i},{share * best},{0.1 * share * best},{rate},10"
        )
    return "\n".join(lines) + "\n"


def write_run(folder: Path, config: str, table: str, index: int) -> None:
    """A run directory with about 60 files."""
    pretrained = folder / "pretrained"
    for part in (folder / "videos", folder / "source_replay", pretrained / "source_replay"):
        part.mkdir(parents=True)
    for place in (folder, pretrained):
        (place / "config.yaml").write_text(config)
        (place / "scores.csv").write_text(table)
        for episode in range(20):
            (place / "source_replay" / f"{episode:032x}.npz").write_bytes(bytes(1000))
    point = json.dumps({"step": index, **{f"target/model/metric_{i}": 0.123456789 for i in range(30)}}) + "\n"
    (folder / "metrics.jsonl").write_text(point * 200)
    (folder / "log.txt").write_text("iteration 1000 of 120000\n" * 500)
    for video in range(ROUNDS):
        (folder / "videos" / f"{video}.gif").write_bytes(bytes(5000))


def measure(folder: Path, out: Path) -> dict[str, Any]:
    """Run report.py on ``folder``: seconds, processor seconds, and peak memory in MB."""
    start = time.monotonic()
    command = [sys.executable, ROOT / "report.py", folder, "--out", out]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("report.py failed")
    return {
        "seconds": time.monotonic() - start,
        "processor": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[50, 500], help="numbers of run directories")
    parser.add_argument("--methods", type=int, default=len(METHODS), help="how many methods (default: all)")
    parser.add_argument("--folder", type=Path, help="folder to keep the runs and reports in (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = args.folder or Path(temporary)
        print("| runs | seconds | processor seconds | peak memory, MB |\n|---|---|---|---|")
        for number in args.runs:
            runs = place / f"{number}-runs"
            if not runs.exists():
                context = multiprocessing.get_context("spawn")
                process = context.Process(target=generate, args=(runs, number, args.methods))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit("the runs could not be generated")
            found = measure(runs, place / f"{number}-report")
            print(
                f"| {number} | {found['seconds']:.1f} | {found['processor']:.1f} | {found['memory']:.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
