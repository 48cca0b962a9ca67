"""Frames a second of every suite, as the suite ships and with this project's two render settings, in one run.

    python benchmarks/simulators.py [--rounds 3] [--seconds 2]

A frame here is an agent step: the simulator's steps (2 in DMC, by its action repeat) and one 64x64 image.
Each variant has its own process. In each round they run one after the other, so that other load on the machine affects
all of them. The median of the rounds is reported. The only change to "as shipped" is the name that RoboDesk's renderer
needs and Pillow 10 removed.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository's root

from wrappers import make_env
from wrappers.shared.backend import choose_backend

TASKS = {"DMC": "dmc_walker_walk", "Meta-World": "metaworld_door-close", "RoboDesk": "robodesk_push_green"}
VARIANTS = ("as shipped", "full", "fast")
SIZE = 64


def shipped_dmc() -> Callable[[], None]:
    """dm_control's environment and `Physics.render`."""
    from dm_control import suite

    env = suite.load("walker", "walk")
    env.reset()
    action = env.action_spec().minimum * 0

    def step() -> None:
        env.step(action)
        env.step(action)
        env.physics.render(SIZE, SIZE, camera_id="side")

    return step


def shipped_metaworld() -> Callable[[], None]:
    """Meta-World's class and gymnasium's MuJoCo renderer, which it uses."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    make = ALL_V3_ENVIRONMENTS["door-close-v3"]
    env = make(render_mode="rgb_array", camera_name="corner", width=SIZE, height=SIZE)
    env._set_task_called, env._freeze_rand_vec, env.max_path_length = True, False, 10**9
    env.reset()
    action = env.action_space.low * 0

    def step() -> None:
        env.step(action)
        env.render()

    return step


def shipped_robodesk() -> Callable[[], None]:
    """RoboDesk's environment, which draws in every step."""
    import PIL.Image
    import robodesk

    PIL.Image.ANTIALIAS = PIL.Image.LANCZOS
    env = robodesk.RoboDesk("push_green")
    env.reset()
    return lambda: env.step([0.0] * env.action_dim)


SHIPPED = {"DMC": shipped_dmc, "Meta-World": shipped_metaworld, "RoboDesk": shipped_robodesk}


def ours(task: str, render: str) -> Callable[[], None]:
    """This project's environment."""
    env = make_env(task, size=SIZE, render=render)
    env.reset(seed=0)
    action = env.action_space.low * 0
    return lambda: env.step(action)


def prepare(suite: str, variant: str) -> None:
    """Make the environment of this process and draw a first frame, which is slower than later ones."""
    global _step
    if variant == "as shipped":
        os.environ.pop("LP_NUM_THREADS")  # set by wrappers/shared/backend.py
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # gym's notice, and OpenGL's tracebacks at exit
        _step = SHIPPED[suite]()
    else:
        _step = ours(TASKS[suite], variant)
    _step()


def frames_a_second(seconds: float) -> float:
    """Step for about ``seconds``; at least three times."""
    count, start = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - start < seconds:
        _step()
        count += 1
    return count / (time.perf_counter() - start)


def measure(rounds: int, seconds: float) -> dict[tuple[str, str], float]:
    """The median frames a second of each (suite, variant)."""
    keys = [(suite, variant) for suite in TASKS for variant in VARIANTS]
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    spawn = get_context("spawn")
    pools = {key: ProcessPoolExecutor(1, spawn, initializer=prepare, initargs=key) for key in keys}
    for pool in pools.values():
        pool.submit(frames_a_second, 0).result()  # one at a time; the start is not measured
    for _ in range(rounds):
        for key, pool in pools.items():
            rates[key].append(pool.submit(frames_a_second, seconds).result())
    for pool in pools.values():
        pool.shutdown()
    return {key: statistics.median(values) for key, values in rates.items()}


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description="Frames a second of every suite and render setting.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each variant steps in a round")
    arguments = parser.parse_args()
    backend = choose_backend()
    rates = measure(arguments.rounds, arguments.seconds)
    print(f"{os.cpu_count()} cores, MUJOCO_GL={backend}, frames a second (ratio to the suite as shipped)\n")
    print("| suite | " + " | ".join(VARIANTS) + " |\n|---" + "|---:" * len(VARIANTS) + "|")
    for suite in TASKS:
        shipped = rates[suite, "as shipped"]
        cells = [f"{rates[suite, variant]:.1f} ({rates[suite, variant] / shipped:.1f}x)" for variant in VARIANTS]
        print(f"| {suite} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
