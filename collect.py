r"""Collect a dataset: episodes of a task by a random policy, a trained agent, or a DreamerV2 agent as it learns.

python collect.py --task walker_downhill --out data/walker_downhill --quality medium-replay --episodes 1000 \
    --configs defaults dmc
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import config as settings
from tools import BadInput, StopRequest, directory_when_complete, exit_on_bad_input, write_text
from training.collecting import collect_from_learner, collect_from_policy

POLICIES = ("random", "checkpoint", "dreamer")
QUALITIES = {"random": "random", "expert": "checkpoint", "medium-replay": "dreamer", "medium-expert": "dreamer"}


def command() -> argparse.ArgumentParser:
    parser = settings.parser(__doc__)
    parser.add_argument("--task", required=True, help="task name, as in co_training.py")
    parser.add_argument("--out", required=True, type=Path, help="folder for the episodes, new or empty")
    parser.add_argument("--episodes", type=int, default=20, help="how many episodes; with --quality medium-*, at most")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="random",
        help="random actions; the agent of --checkpoint, sampling; or a DreamerV2 agent trained online, every episode "
        "of its replay from the first",
    )
    parser.add_argument(
        "--quality",
        choices=QUALITIES,
        help="instead of --policy: random; expert (--checkpoint's agent); medium-replay and medium-expert: the replay "
        "of a DreamerV2 agent until an evaluation reaches a third, or the whole, of --max_score",
    )
    parser.add_argument("--max_score", type=float, help="an agent's best return (default: the suite's known maximum)")
    parser.add_argument("--checkpoint", type=Path, help="run directory of the agent, for --policy checkpoint")
    parser.add_argument("--agent", default="target", help="which of the run's agents: target, source, source_2, ...")
    return parser


def main(arguments: list[str] | None = None) -> None:
    config, args = settings.parse(command(), arguments)
    if args.episodes < 1:
        raise BadInput(f"--episodes {args.episodes}: give 1 or more")
    args.policy, stop = QUALITIES.get(args.quality, args.policy), StopRequest()
    with directory_when_complete(args.out) as folder:
        if args.policy == "dreamer":
            description = collect_from_learner(config, args, folder)
        else:
            description = collect_from_policy(config, args, folder, stop)
        description |= {"episodes": len(description["returns"]), "policy": args.policy, "quality": args.quality}
        description |= {"seed": config.seed, "versions": {p: version(p) for p in ("mujoco", "torch")}}
        if description["episodes"]:
            write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n")
    print(f"{description['episodes']} episodes, {description['steps']} steps in {args.out}")
    if stop.signal is not None:
        print("stopped; the complete episodes are kept", file=sys.stderr)
        sys.exit(128 + stop.signal)


if __name__ == "__main__":
    exit_on_bad_input(main)
