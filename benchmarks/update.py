"""What an update costs: seconds, floating-point operations, and the share of a large matrix product's rate.

    python benchmarks/update.py [--settings paper release small] [--batch_size 16] [--repeats 5] [--device auto]

One target update (Eq. 3, 6, 7) and one source update with reward alignment (Eq. 5), the world model and the behaviour
apart, warm, the median of several. The matrix product runs in the same process and precision, before and after each
setting, so that what else the machine does falls on both. The plain update is that of `benchmarks/plain.py`, in
float32 and with the C library's own handling of memory. A batch's contents do not change its cost, so they are random;
`+ data` reads its batches from episodes on disk, and `+ data + simulator` takes train_every agent steps in a simulator
beside each update, as an online phase does.
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
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

from training.trained import agent_policy

import config as settings
import tools
from agents import Batch, SourceAgent, TargetAgent
from benchmarks import plain
from replay.store import OfflineDataset, Prefetcher, save_episode
from training.trainer import pick_device

BLOCKS = {"paper": ["dmc"], "release": ["release"], "small": ["dmc", "small"]}
ACTIONS = 6


def seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The median time of ``work``, after one run that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


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


def random_batch(config: SimpleNamespace, device: torch.device) -> Batch:
    shape, size = (config.batch_size, config.batch_length), config.size[0]
    return {
        "image": torch.randint(0, 256, (*shape, size, size, 3), dtype=torch.uint8, device=device),
        "action": torch.rand(*shape, ACTIONS, device=device) * 2 - 1,
        "reward": torch.rand(shape, device=device),
        "discount": torch.ones(shape, device=device),
    }


@contextmanager
def dataset(config: SimpleNamespace) -> Iterator[OfflineDataset]:
    """Twenty random episodes of 200 steps on disk."""
    rng, size = np.random.default_rng(0), config.size[0]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(20):
            episode = {
                "image": rng.integers(0, 256, (201, size, size, 3), np.uint8),
                "action": rng.uniform(-1, 1, (201, ACTIONS)).astype(np.float32),
                "reward": rng.uniform(0, 1, 201).astype(np.float32),
                "discount": np.ones(201, np.float32),
            }
            save_episode(Path(folder), episode)
        yield OfflineDataset(folder, size=size, length=config.batch_length, cache_dir=f"{folder}/cache")


@contextmanager
def simulator(config: SimpleNamespace) -> Iterator[object]:
    """A collector with one walker in its own process. Imported here: a machine without simulators does the rest."""
    from driver import Collector
    from environments import collection_envs

    envs = collection_envs(config, "dmc_walker_walk", "source")
    try:
        yield Collector(envs, lambda episode: None, seed=0)
    finally:
        for env in envs:
            env.close()


def work_of(source: SourceAgent, target: TargetAgent) -> dict[str, Callable[[], object]]:
    """What is timed on random batches, by name."""
    batch, other = (random_batch(source.config, source.device) for _ in range(2))
    return {
        "target world model": lambda: target.update_model(batch, [source]),
        "target update": lambda: target.update(batch, [source]),
        "source world model": lambda: source.update_model(batch, other, step=0),
        "source update": lambda: source.update(batch, other, step=0),
    }


def plain_work(source: SourceAgent, target: TargetAgent) -> dict[str, Callable[[], object]]:
    trainer, batch = plain.Trainer(target), random_batch(target.config, target.device)
    return {
        "plain target world model": lambda: trainer.update_model(batch, source),
        "plain target update": lambda: trainer.update(batch, source),
    }


def pipeline_work(source: SourceAgent, target: TargetAgent, stack: ExitStack, own: argparse.Namespace) -> dict:
    """Updates with all that goes on beside them in a run."""
    config, rng = target.config, np.random.default_rng(0)
    data, size = stack.enter_context(dataset(config)), (config.batch_size, config.batch_length)
    batches = Prefetcher(lambda: tools.to_tensors(data.sample(*size, rng), target.device), rng)

    def batch() -> Batch:
        return tools.to_device(batches.next(), target.device)

    work = {"target update + data": lambda: target.update(batch(), [source])}
    if own.simulator:
        collector, policy = stack.enter_context(simulator(config)), agent_policy(source, sample=True)

        def online() -> None:
            for step in range(config.train_every):
                collector.start(policy)
                if step == 0:
                    source.update(batch(), batch(), step=0)
                collector.finish()

        work["source update + data + simulator"] = online
    return work


def measure(name: str, own: argparse.Namespace) -> list[dict]:
    """Rows of the table for one setting."""
    flags = {key: str(value) for key in ("batch_size", "precision", "compile") if (value := getattr(own, key))}
    config = SimpleNamespace(**settings.merge(settings.read_blocks(), BLOCKS[name], {**flags, "eta_steps": "1"}))
    device = pick_device(own.device)
    torch.manual_seed(0)
    source, target = (kind(config, ACTIONS, ACTIONS, device) for kind in (SourceAgent, TargetAgent))
    eager = [kind(SimpleNamespace(**{**vars(config), "compile": "off"}), ACTIONS, ACTIONS, device)
             for kind in (SourceAgent, TargetAgent)]  # fmt: skip
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    image = np.zeros((1, *config.size, 3), np.uint8)
    held = source.act({"image": image}, None, np.array([True]), True)[1]
    with ExitStack() as stack:
        before = product_rate(device, dtype)
        counts = {key: operations(call) for key, call in work_of(*eager).items()}
        tools.keep_freed_memory(False)
        timed = {key: seconds(call, own.repeats, device) for key, call in plain_work(*eager).items()}
        tools.keep_freed_memory()
        timed |= {key: seconds(call, own.repeats, device) for key, call in work_of(source, target).items()}
        pipeline = pipeline_work(source, target, stack, own)
        timed |= {key: seconds(call, own.repeats, device) for key, call in pipeline.items()}
        act = {"policy step": lambda: source.act({"image": image}, held, np.array([False]), True)}
        timed |= {key: seconds(call, 50, device) for key, call in act.items()}
        peak = (before + product_rate(device, dtype)) / 2
    for agent in ("target", "source"):
        for table in (timed, counts):
            table[f"{agent} behaviour"] = table[f"{agent} update"] - table[f"{agent} world model"]
    return [row(f"{name} {config.batch_size}x{config.batch_length}", key, timed, counts, peak) for key in timed]


def row(setting: str, key: str, timed: dict[str, float], counts: dict[str, int], peak: float) -> dict:
    """A line of the table: with operations where they were counted, and how much faster than the plain program."""
    line = {"setting": setting, "work": key, "seconds": timed[key]}
    if key in counts:
        rate = counts[key] / timed[key]
        line |= {"flops": counts[key], "flops_per_second": rate, "product_flops_per_second": peak, "share": rate / peak}
    if f"plain {key}" in timed:
        line["times_plain"] = timed[f"plain {key}"] / timed[key]
    return line


def peak_memory(device: torch.device) -> float:
    """GB used at most so far: of the GPU, or of this process."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--batch_size", type=int, help="sequences, instead of the setting's own")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", choices=("auto", "on", "off"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--simulator", action=argparse.BooleanOptionalAction, default=True, help="also beside one")
    parser.add_argument("--out", type=Path, help="also write the rows here, as JSON")
    own = parser.parse_args()
    print(f"{'setting':16} {'work':33} {'seconds':>8} {'GFLOP':>8} {'GFLOP/s':>8} {'product':>8} {'share':>6}  faster")
    rows = []
    for name in own.settings:
        lines = measure(name, own)
        rows += lines
        print("\n".join(text(line) for line in lines), flush=True)
    print(f"peak memory {peak_memory(pick_device(own.device)):.2f} GB, {torch.get_num_threads()} CPU threads")
    if own.out:
        own.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
