"""What an update costs: seconds, floating-point operations, and the share of a large matrix product's rate.

    python benchmarks/update.py [--settings paper release small] [--batch_size 16] [--repeats 5] [--device auto]

One target update (Eq. 3, 6, 7) and one source update with reward alignment (Eq. 5), and the world model and the
behavior of each by themselves. The first run of each is not timed; the median of the others is reported. The matrix
product runs in the same process and precision, before and after each setting, so that other load on the machine
affects both. The two forms of the value constraint (`constraint_latents`) take turns. The plain update is that of
`benchmarks/plain.py`, in float32 and with the C library's default handling of memory. The cost does not depend on a
batch's contents, so batches are random. `+ data` reads its batches from episodes on disk. `+ data + simulator` also
takes train_every agent steps in a simulator during each update, as an online phase does. `--settings debug` is a quick
check that everything runs.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import torch
from torch.utils.flop_counter import FlopCounterMode

import config as settings
from agents.base import Batch
from agents.coworld import SourceAgent, TargetAgent
from benchmarks.plain import PlainTrainer
from config import Config
from replay import OfflineDataset, Prefetcher, save_episode
from tools import Parser, exit_on_bad_input
from training.device import keep_freed_memory, pick_device, pick_precision, to_device, to_tensors
from training.policies import agent_policy

BLOCKS = {
    "paper": ["dmc"],
    "release": ["release"],
    "small": ["dmc", "small"],
    "study": ["dmc", "small", "study"],
    "dreamerv3": ["dmc", "dreamerv3"],
    "dreamerv3_small": ["dmc", "dreamerv3", "small"],
    "debug": ["dmc", "debug"],
}
ACTIONS = 6


def seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The median time of ``work``, after one run that is not timed."""
    return seconds_in_turns({"": work}, repeats, device)[""]


def seconds_in_turns(work: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """The median time of each, after one run that is not timed. They take turns, so that other load affects all."""
    times = {key: [] for key in work}
    for _ in range(repeats + 1):
        for key, call in work.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[key].append(time.perf_counter() - start)
    return {key: statistics.median(found[1:]) for key, found in times.items()}


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of ``work``, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, 9, device)


@contextmanager
def dataset(config: Config) -> Iterator[OfflineDataset]:
    """Twenty random episodes of 200 steps on disk."""
    rng, size = np.random.default_rng(0), config.size[0]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(20):
            episode = {
                "image": rng.integers(0, 256, (201, size, size, 3), np.uint8),
                "action": rng.uniform(-1, 1, (201, ACTIONS)).astype(np.float32),
                "reward": rng.uniform(0, 1, 201).astype(np.float32),
                "discount": np.ones(201, np.float32),
            }
            save_episode(Path(folder), episode, id=f"{number:032x}")
        yield OfflineDataset(folder, size=size, cache_dir=f"{folder}/cache")


@contextmanager
def simulator(config: Config) -> Iterator[object]:
    """A collector with one walker in its own process. Imported here: the rest needs no simulators."""
    from training.collector import Collector
    from wrappers.shared.simulators import collection_envs

    collector = Collector(collection_envs(config, "dmc_walker_walk", "source"), lambda episode: None, seed=0)
    try:
        yield collector
    finally:
        collector.close()


def agents(config: Config, device: torch.device) -> tuple[SourceAgent, TargetAgent]:
    return tuple(kind(config, ACTIONS, ACTIONS, device) for kind in (SourceAgent, TargetAgent))


def update_target(source: SourceAgent, target: TargetAgent, batch: Batch) -> None:
    """Eq. 3, 6 and 7, with the embedding and the critic of ``source``, as in co_training.py."""
    embed = source.embed(batch)
    target.update(batch, embed, source.value_bound(batch, embed))


def work_of(source: SourceAgent, target: TargetAgent) -> dict[str, Callable[[], object]]:
    """The work to time on random batches, by name."""
    batch, other = (source.random_batch() for _ in range(2))
    return {
        "target world model": lambda: target.update_world_model(batch, source.embed(batch)),
        "target update": lambda: update_target(source, target, batch),
        "source world model": lambda: source.update_world_model(batch, other),
        "source update": lambda: source.update(batch, other),
    }


def constraint_work(config: Config, device: torch.device) -> dict[str, Callable[[], object]]:
    """A target update with each form of Eq. 6's bound, and the measurement of alignment's share of the gradient."""
    work = {}
    for latents in ("target", "source"):
        source, target = agents(config.replace(constraint_latents=latents), device)
        batch = source.random_batch()
        work[f"target update, latents {latents}"] = partial(update_target, source, target, batch)
    return {**work, "alignment's gradient": partial(target.alignment_gradient_norm, batch, source.embed(batch))}


def plain_work(source: SourceAgent, target: TargetAgent) -> dict[str, Callable[[], object]]:
    trainer, batch = PlainTrainer(target), target.random_batch()
    return {
        "plain target world model": lambda: trainer.update_world_model(batch, source),
        "plain target update": lambda: trainer.update(batch, source),
    }


def policy_work(source: SourceAgent) -> dict[str, Callable[[], object]]:
    """A policy step for one simulator, in the middle of an episode."""
    observation = {"image": np.zeros((1, *source.config.size, 3), np.uint8)}
    state = source.act(observation, None, np.array([True]), sample=True)[1]
    return {"policy step": lambda: source.act(observation, state, np.array([False]), sample=True)}


def pipeline_work(source: SourceAgent, target: TargetAgent, stack: ExitStack, args: argparse.Namespace) -> dict:
    """Updates with the reading of data and, if asked for, the simulator of a run."""
    config, rng = target.config, np.random.default_rng(0)
    data, size = stack.enter_context(dataset(config)), (config.batch_size, config.batch_length)
    batches = Prefetcher(lambda: to_tensors(data.sample(*size, rng), target.device), rng)
    stack.callback(batches.close)

    def batch() -> Batch:
        return to_device(batches.next(), target.device)

    work = {"target update + data": lambda: update_target(source, target, batch())}
    if args.simulator:
        collector, policy = stack.enter_context(simulator(config)), agent_policy(source, sample=True)

        def online() -> None:
            for step in range(config.train_every):
                collector.start(policy)
                if step == 0:
                    source.update(batch(), batch())
                collector.finish()

        work["source update + data + simulator"] = online
    return work


def measure(name: str, args: argparse.Namespace) -> list[dict]:
    """Rows of the table for one setting."""
    flags = {key: str(value) for key in ("batch_size", "precision", "compile") if (value := getattr(args, key))}
    values = settings.merge(settings.read_blocks(), BLOCKS[name], {**flags, "eta_steps": "1"})
    device = pick_device(args.device)
    config = Config(**values, configs=BLOCKS[name])
    config = config.replace(precision=pick_precision(config.precision, device))
    torch.manual_seed(0)
    source, target = agents(config, device)
    eager = agents(config.replace(compile="off"), device)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    timed: dict[str, float] = {}

    def time_all(work: dict[str, Callable[[], object]], repeats: int = args.repeats) -> None:
        timed.update({key: seconds(call, repeats, device) for key, call in work.items()})

    with ExitStack() as stack:
        before = product_rate(device, dtype)
        counts = {key: operations(call) for key, call in work_of(*eager).items()}
        keep_freed_memory(False)
        if not config.gru_blocks:  # the plain update is DreamerV2's
            time_all(plain_work(*eager))
        keep_freed_memory()
        time_all(work_of(source, target))
        time_all(pipeline_work(source, target, stack, args))
        time_all(policy_work(source), 50)
        timed.update(seconds_in_turns(constraint_work(config, device), args.repeats, device))
        peak = (before + product_rate(device, dtype)) / 2
    for agent in ("target", "source"):
        for table in (timed, counts):
            table[f"{agent} behavior"] = table[f"{agent} update"] - table[f"{agent} world model"]
    return [row(f"{name} {config.batch_size}x{config.batch_length}", key, timed, counts, peak) for key in timed]


def row(setting: str, key: str, timed: dict[str, float], counts: dict[str, int], peak: float) -> dict:
    """A line of the table; with operations if they were counted, and the speed-up over the plain update if timed."""
    line = {"setting": setting, "work": key, "seconds": timed[key]}
    if key in counts:
        rate = counts[key] / timed[key]
        line |= {"flops": counts[key], "flops_per_second": rate, "product_flops_per_second": peak, "share": rate / peak}
    if f"plain {key}" in timed:
        line["times_plain"] = timed[f"plain {key}"] / timed[key]
    return line


def peak_memory(device: torch.device) -> float:
    """Peak memory so far, in GB, of the GPU or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def text(line: dict) -> str:
    counted = ""
    if "flops" in line:
        figures = (line[key] / 1e9 for key in ("flops", "flops_per_second", "product_flops_per_second"))
        counted = " ".join(f"{figure:8.1f}" for figure in figures) + f" {line['share']:6.0%}"
    ratio = f"{line['times_plain']:7.1f}x" if "times_plain" in line else ""
    return f"{line['setting']:16} {line['work']:33} {line['seconds']:8.4f} {counted:33} {ratio}".rstrip()


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=BLOCKS, default=["paper", "release", "small"])
    parser.add_argument("--batch_size", type=int, help="sequences in a batch, instead of the setting's")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--compile", choices=("auto", "on", "off"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--simulator", action=argparse.BooleanOptionalAction, default=True, help="also with a simulator"
    )
    parser.add_argument("--out", type=Path, help="also write the rows to this file, as JSON")
    args = parser.parse_args()
    print(f"{'setting':16} {'work':33} {'seconds':>8} {'GFLOP':>8} {'GFLOP/s':>8} {'product':>8} {'share':>6}  faster")
    rows = []
    for name in args.settings:
        lines = measure(name, args)
        rows += lines
        print("\n".join(text(line) for line in lines), flush=True)
    print(f"peak memory {peak_memory(pick_device(args.device)):.2f} GB, {torch.get_num_threads()} CPU threads")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    exit_on_bad_input(main)
