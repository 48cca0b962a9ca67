"""Time one update of each model-free method at its published settings, on random batches.

    python benchmarks/model_free.py --methods bc drq_bc cql curl --size 84

Methods take turns, so that other work on the machine slows all of them alike. Processor seconds are of all threads.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import torch

import config as settings
from agents.model_free import StackAgent
from config import Config
from tools import Parser, exit_on_bad_input
from training.device import keep_freed_memory, pick_device, pick_precision, seed_everything
from training.methods import METHODS, AgentBuilder

ACTIONS = 6
MODEL_FREE = [name for name, method in METHODS.items() if not method.world_model]


def make_agent(method: str, args: argparse.Namespace, device: torch.device) -> StackAgent:
    flags = {"method": method, "size": f"{args.size},{args.size}", "precision": args.precision}
    flags |= {"transitions": str(args.transitions)} if args.transitions else {}
    config = Config(**settings.merge(settings.read_blocks(), ["dmc"], flags))
    config = config.replace(precision=pick_precision(config.precision, device))
    return METHODS[method].agents(AgentBuilder(config, device, {"target": ACTIONS}, {}))["target"]


def timed(agent: StackAgent, device: torch.device) -> tuple[float, float]:
    """Seconds of one update, by the clock and of the processor."""
    batch = agent.random_batch()
    start = time.perf_counter(), time.process_time()
    agent.update(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=MODEL_FREE, default=MODEL_FREE)
    parser.add_argument("--size", type=int, default=84, help="pixels of an image (default: 84)")
    parser.add_argument("--transitions", type=int, help="in a batch (default: the method's)")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    seed_everything(0)
    keep_freed_memory()
    agents = {method: make_agent(method, args, device) for method in args.methods}
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in agents}
    for repeat in range(args.repeats + 1):
        for method, agent in agents.items():
            found = timed(agent, device)
            if repeat:  # the first is a warm-up
                times[method].append(found)
    print(f"{'method':10} {'batch':>6} {'precision':>10} {'seconds':>8} {'processor':>10}")
    for method, found in times.items():
        config = agents[method].config
        clock, processor = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{method:10} {config.transitions:6} {config.precision:>10} {clock:8.3f} {processor:10.3f}")
    print(f"{args.size} pixels, {torch.get_num_threads()} CPU threads, {device}")


if __name__ == "__main__":
    exit_on_bad_input(main)
