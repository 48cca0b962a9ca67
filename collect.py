r"""Collect a dataset: episodes of a task by a random policy, a trained agent, an expert that learns from the
simulator's states, or a DreamerV2 agent as it learns.

python collect.py --task walker_downhill --out data/walker_downhill --quality medium-replay --episodes 1000 \
    --configs defaults dmc
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import BadInput, StopRequest, directory_when_complete, exit_on_bad_input, require, write_text, user_path  # isort: skip
import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import argparse
import json
import sys
from importlib.metadata import version

import config as settings
from co_training import LOOPS
from config import Config
from training.collecting import EXPERT_STEPS, SHARE_OF_MAXIMUM, collect_from_learner, collect_from_policy
from training.methods import COLLECTION, check_blocks
from training.used_settings import unused_settings, unused_suite_settings
from wrappers import parse_task

POLICIES = ("random", "checkpoint", "sac", "dreamer")
OF_POLICY = {"checkpoint": "checkpoint", "agent": "checkpoint", "expert_steps": "sac"}  # option -> the policy it is of
QUALITIES = {"random": "random", "expert": "sac", "medium-replay": "dreamer", "medium-expert": "dreamer"}


def command() -> argparse.ArgumentParser:
    parser = settings.parser(__doc__)
    parser.add_argument("--task", required=True, help="task name, as in co_training.py")
    parser.add_argument("--out", required=True, type=user_path, help="folder for the episodes, new or empty")
    parser.add_argument("--episodes", type=int, default=20, help="how many episodes; with --quality medium-*, at most")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default=argparse.SUPPRESS,
        help="random actions; the agent of --checkpoint, sampling; sac: an expert trained first on the simulator's "
        "low-dimensional states, sampling; dreamer: a DreamerV2 agent trained online, every episode of its replay from "
        "the first (default: random)",
    )
    parser.add_argument(
        "--quality",
        choices=QUALITIES,
        help="instead of --policy: random; expert (--checkpoint's agent, or sac's); medium-replay and medium-expert: "
        "the replay of a DreamerV2 agent until an evaluation reaches a third, or the whole, of --max_score",
    )
    parser.add_argument("--max_score", type=float, help="an agent's best return (default: the suite's known maximum)")
    parser.add_argument(
        "--expert_steps", type=int, help=f"sac: at most so many agent steps of training (default: {EXPERT_STEPS})"
    )
    parser.add_argument("--checkpoint", type=user_path, help="run directory of the agent, for --policy checkpoint")
    parser.add_argument("--agent", help="which of the run's agents: target (default); source, or source_1, ...")
    return parser


def check(config: Config, args: argparse.Namespace) -> None:
    """Sets ``args.policy``, parses ``args.task``. Raises BadInput on arguments that do not fit, or have no effect."""
    if args.episodes < 1:
        raise BadInput(f"--episodes {args.episodes}: give 1 or more")
    args.task = parse_task(args.task)
    policy = getattr(args, "policy", None)
    args.policy = QUALITIES.get(args.quality, policy or "random")
    if args.quality == "expert" and args.checkpoint is not None:
        args.policy = "checkpoint"
    if policy not in (None, args.policy):
        raise BadInput(f"--policy {policy} does not fit --quality {args.quality}; give one of the two")
    given = [name for name in OF_POLICY if getattr(args, name) is not None]
    others = {name: f"with --policy {args.policy}" for name in given if OF_POLICY[name] != args.policy}
    settings.refuse_without_effect(given, others)
    settings.refuse_without_effect(args.given, unused(config, args))
    check_blocks(config.configs)
    if args.policy == "checkpoint" and args.checkpoint is None:
        raise BadInput("--checkpoint is missing: give the run directory of the agent")
    if args.policy == "sac":
        require("stable_baselines3", "expert", "--policy sac" if policy else f"--quality {args.quality}")
    if args.expert_steps is not None and args.expert_steps < 1:
        raise BadInput(f"--expert_steps {args.expert_steps}: give 1 or more")
    if args.max_score is not None and args.policy != "sac" and args.quality not in SHARE_OF_MAXIMUM:
        raise BadInput("--max_score has no effect without --policy sac or --quality medium-*; remove it")


def unused(config: Config, args: argparse.Namespace) -> dict[str, str]:
    """The settings that have no effect on this collection, with the reason."""
    others = {key: "in collect.py" for key in vars(config) if set(commands(key)) == {"co_training"}}
    others |= unused_settings(config, COLLECTION, "in collect.py") | unused_suite_settings([args.task])
    used = {key for key in vars(config) if {"collect", args.policy} & set(commands(key))}
    of_others = vars(config).keys() - used - unused_suite_settings([]).keys()
    return dict.fromkeys(of_others, f"with --policy {args.policy}") | others


def commands(key: str) -> list[str]:
    return settings.facts(key).commands.split()


def main(arguments: list[str] | None = None) -> None:
    config, args = settings.parse(command(), arguments)
    check(config, args)
    stop, error = StopRequest(), None
    with directory_when_complete(args.out) as folder:
        if args.policy == "dreamer":
            description = collect_from_learner(config, args, folder, LOOPS)
        else:
            description, error = collect_from_policy(config, args, folder, stop)
        description |= {"episodes": len(description["returns"]), "policy": args.policy, "quality": args.quality}
        description |= {"seed": config.seed, "versions": {p: version(p) for p in ("mujoco", "torch")}}
        if description["episodes"]:
            write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n")
    print(f"{description['episodes']} episodes, {description['steps']} steps in {args.out}")
    if stop.signal is not None:
        print("stopped; the complete episodes are kept", file=sys.stderr)
        sys.exit(128 + stop.signal)
    if error:
        print("failed; the complete episodes are kept", file=sys.stderr)
        raise error


if __name__ == "__main__":
    exit_on_bad_input(main)
