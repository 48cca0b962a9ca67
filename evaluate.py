"""Score a run's checkpoint in its simulator and write a video of the first episode.

python evaluate.py --logdir RUN --episodes 10
"""

import argparse
from pathlib import Path

from training import collector as driver
import tools
from wrappers.shared.simulators import evaluation_envs
from tools import BadInput, Parser, exit_on_bad_input
from tools import write_atomically
from training.trainer import EVALUATION_SEED, pick_device
from training.trained import agent_policy, agent_task, check_fits, load_agent
from wrappers import parse_task


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--logdir", required=True, type=Path, help="run directory that holds the checkpoint")
    parser.add_argument("--agent", default="target", help="target, source, source_2, ... (default: target)")
    parser.add_argument("--episodes", type=int, default=10, help="how many episodes (default: 10)")
    parser.add_argument("--task", help="another task to score it on (default: the agent's own)")
    parser.add_argument("--seed", type=int, help="of the episodes (default: that of the run's own evaluations)")
    parser.add_argument("--video", type=Path, help="the GIF to write (default: RUN/videos/evaluate-AGENT-TASK.gif)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    own = command().parse_args(arguments)
    if own.episodes < 1:
        raise BadInput(f"--episodes {own.episodes}: give 1 or more")
    if own.seed is not None and not 0 <= own.seed < 2**31:
        raise BadInput(f"--seed {own.seed}: give 0 or more, under 2147483648")
    agent, config = load_agent(own.logdir, own.agent, pick_device(own.device))
    task = parse_task(own.task or agent_task(config, own.agent))
    envs = evaluation_envs(config, str(task), own.agent.split("_")[0], own.episodes)
    env = envs[0]
    check_fits(agent, env, str(task))
    seed = EVALUATION_SEED + config.seed if own.seed is None else own.seed
    with tools.progress_bar(own.episodes * config.time_limit, f"evaluate {own.agent}") as bar:
        scores = driver.evaluate(agent_policy(agent, sample=False), envs, own.episodes, seed, bar.update)
    for env in envs:
        env.close()
    video = own.video or own.logdir / "videos" / f"evaluate-{own.agent}-{task}.gif"
    write_atomically(video, lambda file: file.write(tools.encode_gif(scores.frames, fps=20)))
    success = "" if scores.success is None else f", success {scores.success:.0%}"
    print(f"{task}: return {scores.mean:.1f} +- {scores.std:.1f}{success} over {own.episodes} episodes; video {video}")


if __name__ == "__main__":
    exit_on_bad_input(main)
