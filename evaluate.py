"""Evaluate a run's agent in its simulator and write a video of the first episode.

python evaluate.py --logdir RUN --episodes 10
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import BadInput, Parser, exit_on_bad_input, progress_bar, short_name, user_path  # isort: skip
import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import argparse

from training.checkpoint import agent_role, check_fits, load_agent, simulated_agent_task
from training.device import add_threads, pick_device, use_threads
from training.evaluator import EVALUATION_SEED, evaluate
from training.policies import agent_policy
from training.visuals import check_video_path, enlarge, save_video
from wrappers import parse_task
from wrappers.shared.simulators import evaluation_envs


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--logdir", required=True, type=user_path, help="run directory that holds the checkpoint")
    parser.add_argument(
        "--agent", default="target", help="target; source, or source_1, source_2, ... (default: target)"
    )
    parser.add_argument("--episodes", type=int, default=10, help="how many episodes (default: 10)")
    parser.add_argument("--task", help="another task to evaluate it on (default: the agent's own)")
    parser.add_argument("--seed", type=int, help="of the episodes (default: that of the run's own evaluations)")
    parser.add_argument(
        "--video", type=user_path, help="video to write, .gif or .mp4 (default: RUN/videos/evaluate-AGENT-TASK.gif)"
    )
    size_help = "pixels of the video's longer side; larger images keep their size (default: 256)"
    parser.add_argument("--video_size", type=int, default=256, help=size_help)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_threads(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises BadInput on arguments that would fail only after the episodes."""
    if args.episodes < 1:
        raise BadInput(f"--episodes {args.episodes}: give 1 or more")
    if args.seed is not None and not 0 <= args.seed < 2**31:
        raise BadInput(f"--seed {args.seed}: give 0 or more, under 2147483648")
    if not 0 <= args.video_size <= 4096:
        raise BadInput(f"--video_size {args.video_size}: give pixels from 0 to 4096")
    if args.video is not None:
        check_video_path(args.video)


def main(arguments: list[str] | None = None) -> None:
    args = command().parse_args(arguments)
    check(args)
    agent, config = load_agent(args.logdir, args.agent, pick_device(args.device))
    task = parse_task(args.task) if args.task else simulated_agent_task(args.logdir, config, args.agent)
    video = args.video or args.logdir / "videos" / f"evaluate-{args.agent}-{short_name(str(task))}.gif"
    check_video_path(video)
    use_threads(args.threads)
    envs = evaluation_envs(config, task, agent_role(config, args.agent), args.episodes)
    try:
        check_fits(agent, envs[0], task)
        seed = EVALUATION_SEED + config.seed if args.seed is None else args.seed
        with progress_bar(args.episodes * config.time_limit, f"evaluate {args.agent}") as bar:
            result = evaluate(agent_policy(agent, sample=False), envs, args.episodes, seed, bar.update)
    finally:
        for env in envs:
            env.close()
    success = "" if result.success is None else f", success {result.success:.0%}"
    score = f"{task}: return {result.mean:.1f} +- {result.std:.1f}{success} over {args.episodes} episodes"
    print(score, flush=True)  # before the video, so that a full disk does not lose it
    save_video(video, enlarge(result.frames, args.video_size), fps=20)
    print(f"video {video}")


if __name__ == "__main__":
    exit_on_bad_input(main)
