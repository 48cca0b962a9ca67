"""Seconds of an update while other processes use the cores too.

    python benchmarks/contention.py [--sizes study small paper] [--neighbours 0 1 2] [--updates 2] [--rounds 3]

A neighbour is a Python process of the lowest priority that computes without end. "Simulators" has none, but the run's
own source simulators, which step train_every times during an update.

before: torch's default number of threads, which spin while they wait. now: as a command computes that is started beside
the neighbours. kept: as one that was started alone, and keeps its threads. one: one thread. Each is a process of its
own; they take turns of --updates updates in every round, so that other work on the machine affects all alike. Medians
over all turns. The fair share of a run beside N neighbours on C cores is max(C - N, C / (N + 1)) cores. Its time
follows from the times alone: of one thread for one core, of the fastest for all cores, and in between by a linear rate.
A neighbour is in a session of its own, as a program of another terminal is; Linux then shares a core equally, whatever
the priority.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch  # first: what the parent sets is what OpenMP reads

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

import config as settings
from benchmarks.update import BLOCKS, agents, simulator, update_target
from config import Config
from tools import Parser, exit_on_bad_input
from training.device import keep_freed_memory, pick_device, pick_precision
from training.policies import agent_policy
from training.threads import WAITING, available_cores, free_cores, pick_threads, useful_threads

WAYS = ("before", "now", "kept", "one")
VARIABLES = ("OMP_", "GOMP_", "KMP_")
NEIGHBOUR = """import os, sys
os.nice(19)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


# A process that computes


def work_of(args: argparse.Namespace, stack: ExitStack) -> tuple[Callable[[], None], Callable[[], None]]:
    """An update of the target, and one of the source beside its simulators; begins to compute as ``args.way`` says."""
    flags = {"compile": args.compile, "eta_steps": "1"}
    flags |= {"batch_size": str(args.batch_size)} if args.batch_size else {}
    config = Config(**settings.merge(settings.read_blocks(), BLOCKS[args.sizes[0]], flags), configs=[])
    config = config.replace(precision=pick_precision("auto", pick_device("cpu")))
    if args.way != "before":
        useful = useful_threads(config, world_model=True)
        number = pick_threads("1" if args.way == "one" else "auto", useful, available_cores())
        torch.set_num_threads(number)
    keep_freed_memory()
    torch.manual_seed(0)
    source, target = agents(config, torch.device("cpu"))
    batch, policy = source.random_batch(), agent_policy(source, sample=True)
    collector = stack.enter_context(simulator(config)) if args.simulators else None

    def online() -> None:
        for step in range(config.train_every):
            collector.start(policy)
            if step == 0:
                source.update(batch, batch)
            collector.finish()

    return lambda: update_target(source, target, batch), online


def compute(args: argparse.Namespace) -> None:
    """Answer every line ``KIND N`` on stdin with the seconds of N updates, of KIND update or simulators.

    ``threads N`` sets the number of threads and has no answer.
    """
    with ExitStack() as stack:
        update, online = work_of(args, stack)
        print(torch.get_num_threads(), flush=True)
        for line in sys.stdin:
            kind, count = line.split()
            if kind == "threads":
                torch.set_num_threads(int(count))
                continue
            times = []
            for _ in range(int(count)):
                start = time.perf_counter()
                (update if kind == "update" else online)()
                times.append(time.perf_counter() - start)
            print(*times, flush=True)


class Computer:
    """The process of one way to compute, which waits between its turns."""

    def __init__(self, way: str, size: str, args: argparse.Namespace):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(VARIABLES)}
        command = [sys.executable, __file__, "--way", way, "--sizes", size, "--compile", args.compile]
        command += ["--batch_size", str(args.batch_size), "--simulators" if args.simulators else "--no-simulators"]
        self.process = subprocess.Popen(
            command, env=environment | (WAITING if way == "now" else {}), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.most = self.threads = 0  # threads that it began with, and that it has now

    def updates(self, kind: str, count: int) -> list[float]:
        """Seconds of each of ``count`` updates."""
        self.write(kind, count)
        return [float(seconds) for seconds in self.process.stdout.readline().split()]

    def write(self, kind: str, count: int) -> None:
        if not self.most:
            self.most = self.threads = int(self.process.stdout.readline())
        self.process.stdin.write(f"{kind} {count}\n")
        self.process.stdin.flush()

    def choose_again(self) -> None:
        """Compute with the number of threads of a command that begins now."""
        self.threads = max(1, min(self.most, free_cores()))
        self.write("threads", self.threads)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


# The table


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes of the lowest priority that use a core each."""
    processes = [
        subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(os.getpid())], start_new_session=True)
        for _ in range(count)
    ]
    try:
        time.sleep(0.5 * bool(count))
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def medians(computers: dict[str, Computer], kind: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of an update by each way."""
    computers["now"].choose_again()
    times = {way: [] for way in computers}
    for _ in range(args.rounds):
        for way, computer in computers.items():
            times[way] += computer.updates(kind, args.updates)
    return {way: statistics.median(found) for way, found in times.items()}


def fair_seconds(alone: dict[str, float], count: int, cores: int) -> float:
    """Seconds of an update with a fair share of the cores beside ``count`` neighbours."""
    share = max(cores - count, cores / (count + 1))
    one, all_cores = 1 / alone["one"], 1 / min(alone.values())
    if share <= 1:
        return 1 / (share * one)
    return 1 / (one + (all_cores - one) * (share - 1) / (cores - 1))


def rows(size: str, args: argparse.Namespace) -> Iterator[str]:
    """Lines of the table for one size."""
    computers = {way: Computer(way, size, args) for way in WAYS}
    cores = available_cores()
    try:
        for computer in computers.values():
            computer.updates("update", 1)  # not counted
        alone = medians(computers, "update", args)
        for count in args.neighbours:
            with neighbours(count):
                seconds = alone if count == 0 else medians(computers, "update", args)
            yield row(f"{size} | {count}", seconds, fair_seconds(alone, count, cores), computers)
        if args.simulators:
            for computer in computers.values():
                computer.updates("simulators", 1)
            seconds = medians(computers, "simulators", args)
            yield row(f"{size} | simulators", seconds, min(seconds.values()), computers)
    finally:
        for computer in computers.values():
            computer.close()


def row(name: str, seconds: dict[str, float], fair: float, computers: dict[str, Computer]) -> str:
    times = " | ".join(f"{seconds[way]:.3f}" for way in WAYS)
    ratios = " | ".join(f"{seconds[way] / fair:.2f}" for way in ("before", "now"))
    return f"| {name} | {fair:.3f} | {times} | {ratios} | {computers['now'].threads} |"


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=BLOCKS, default=["study", "small", "paper"])
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--simulators", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--updates", type=int, default=2, help="in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=16, help="sequences in a batch (0: the size's own)")
    parser.add_argument("--compile", choices=("on", "off"), default="off")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # of a process that computes
    args = parser.parse_args()
    if args.way:
        compute(args)
        return
    print(
        "| size | neighbours | fair share, s | before | now | kept | one | before / fair | now / fair | threads now |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size in args.sizes:
        for line in rows(size, args):
            print(line, flush=True)


if __name__ == "__main__":
    exit_on_bad_input(main)
