"""What an update costs: seconds, floating-point operations, and the share of a large matrix product's rate.

    python benchmarks/update.py [--settings paper release small] [--batch_size 16] [--repeats 5] [--device auto]

One target update (Eq. 3, 6, 7) and one source update with reward alignment (Eq. 5), the world model and the behaviour
apart, warm, the median of several. The matrix product runs in the same process and precision, before and after each
setting, so that what else the machine does falls on both. The plain world model is `benchmarks/plain.py`'s, without
the alignment. Data are random: a batch's contents do not change its cost.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

import config as settings
from agents import Batch, SourceAgent, TargetAgent
from benchmarks import plain
from run import pick_device

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


def measure(name: str, own: argparse.Namespace) -> list[dict]:
    """Rows of the table for one setting."""
    flags = {key: str(value) for key in ("batch_size", "precision") if (value := getattr(own, key))}
    config = SimpleNamespace(**settings.merge(settings.read_blocks(), BLOCKS[name], {**flags, "eta_steps": "1"}))
    device = pick_device(own.device)
    torch.manual_seed(0)
    source, target = (kind(config, ACTIONS, ACTIONS, device) for kind in (SourceAgent, TargetAgent))
    batch, other = random_batch(config, device), random_batch(config, device)
    work = {
        "plain world model": lambda: target._step_model(plain.losses(target.world, batch, config), zero, target.scales),
        "target world model": lambda: target.update_model(batch, source),
        "target update": lambda: target.update(batch, source),
        "source world model": lambda: source.update_model(batch, other, step=0),
        "source update": lambda: source.update(batch, other, step=0),
    }
    zero = torch.zeros((), device=device)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    before = product_rate(device, dtype)
    timed = {key: (seconds(call, own.repeats, device), operations(call)) for key, call in work.items()}
    peak = (before + product_rate(device, dtype)) / 2
    for agent in ("target", "source"):
        whole, model = timed.pop(f"{agent} update"), timed[f"{agent} world model"]
        timed[f"{agent} behaviour"] = whole[0] - model[0], whole[1] - model[1]
        timed[f"{agent} update"] = whole
    return [
        {"setting": f"{name} {config.batch_size}x{config.batch_length}", "work": key, "seconds": time_, "flops": flops,
         "flops_per_second": flops / time_, "product_flops_per_second": peak, "share": flops / time_ / peak}
        for key, (time_, flops) in timed.items()
    ]  # fmt: skip


def peak_memory(device: torch.device) -> float:
    """GB used at most so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--batch_size", type=int, help="sequences, instead of the setting's own")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="also write the rows here, as JSON")
    own = parser.parse_args()
    print(f"{'setting':16} {'work':20} {'seconds':>8} {'GFLOP':>8} {'GFLOP/s':>8} {'product':>8} {'share':>6}")
    rows = []
    for name in own.settings:
        for row in measure(name, own):
            rows.append(row)
            rate, product = row["flops_per_second"] / 1e9, row["product_flops_per_second"] / 1e9
            print(
                f"{row['setting']:16} {row['work']:20} {row['seconds']:8.3f} {row['flops'] / 1e9:8.1f} {rate:8.1f} "
                f"{product:8.1f} {row['share']:6.0%}"
            )
    print(f"peak memory {peak_memory(pick_device(own.device)):.2f} GB, {torch.get_num_threads()} CPU threads")
    if own.out:
        own.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
