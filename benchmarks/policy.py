"""How long a policy takes for one image, in milliseconds: median and 95th percentile.

    python benchmarks/policy.py [--settings paper small] [--steps 1000] [--threads 1] [--precision float32]

`load_policy` is the policy in Python, from a numpy image to a numpy action; `export` is the program of export.py, after
it was written and read again. Both with images of the model's own size and with those of a 640 x 480 camera, which they
resize. `cpu` is the time on the processor, without waiting for other programs. The weights are random: the time does
not depend on them.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import torch

import config as settings
from agents.coworld import TargetAgent
from config import Config
from policy import PixelPolicy
from policy.program import camera_shapes, describe, example_inputs, export_program, to_bytes
from tools import Parser, exit_on_bad_input

BLOCKS = {"paper": ["dmc"], "release": ["release"], "small": ["dmc", "small"], "debug": ["dmc", "debug"]}
ACTIONS = 6
CAMERA = (480, 640, 3)
WARM_UP = 20  # steps that are not timed


def milliseconds(step: Callable[[], object], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The time of each step on the clock, and on the processor: (steps,) each."""
    times = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter(), time.process_time()
        step()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return tuple(1e3 * np.array(times[WARM_UP:]).T)


def exported_step(policy: PixelPolicy, shape: tuple[int, int, int]) -> Callable[[], object]:
    """One step of the policy's program, written and read again, on a random image."""
    file = to_bytes(export_program(policy, shape), describe(policy, shape))
    step = torch.export.load(io.BytesIO(file)).module()
    _, state, first, noise = example_inputs(policy, camera_shapes(policy, shape), 1)
    image = torch.randint(0, 256, (1, *shape), dtype=torch.uint8)

    def run() -> None:
        nonlocal state
        with torch.no_grad():
            action, state = step(image, state, first, noise.uniform_())
        action[0].numpy()

    first[:] = False
    return run


def measure(name: str, steps: int, precision: str) -> None:
    values = settings.merge(settings.read_blocks(), BLOCKS[name], {"precision": precision})
    agent = TargetAgent(Config(**values, configs=[]), ACTIONS, ACTIONS, torch.device("cpu"))
    policy = PixelPolicy(agent)
    for shape in (policy.image_shape, CAMERA):
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        works = {"load_policy": lambda image=image: policy(image), "export": exported_step(policy, shape)}
        for work, step in works.items():
            clock, processor = milliseconds(step, steps)
            figures = [*np.percentile(clock, (50, 95)), *np.percentile(processor, (50, 95))]
            columns = " ".join(f"{figure:8.2f}" for figure in figures)
            print(f"{name:8} {work:12} {shape[0]:4} x {shape[1]:<4} {columns}", flush=True)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=BLOCKS, default=["paper", "small"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = " ".join(f"{column:>8}" for column in ("p50 ms", "p95 ms", "cpu p50", "cpu p95"))
    print(f"{'setting':8} {'policy':12} {'image':11} {columns}    {args.threads} thread(s), {args.precision}")
    for name in args.settings:
        measure(name, args.steps, args.precision)


if __name__ == "__main__":
    exit_on_bad_input(main)
