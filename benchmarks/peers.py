"""Seconds of an agent update of this code and of other repositories, in turns in one run. Prints a Markdown table.

    python benchmarks/peers.py [--release DIR] [--dreamerv3_torch DIR] [--r2dreamer DIR] [--threads 1 2] [--rounds 2]

An update trains the world model, the actor and the critic once, on random batches of 16 sequences of 50 steps, 64
pixels and 6 actions, on the CPU. The folders are checkouts of qiwang067/CoWorld, NM512/dreamerv3-torch and
NM512/r2dreamer. Nothing of theirs is in this repository; one that is not given is left out. They need packages of their
own: gym, and r2dreamer tensordict and hydra-core.

"bfloat16" and "float32" (this code), "plain" (benchmarks/plain.py) and "release" are the same network, the paper's. The
others are other networks with the same latents and the same deter, hidden, units and cnn depth. "dreamerv3" is this
code's block of that name, and "r2dreamer, decoder" is r2dreamer's Dreamer, whose layers are nearest to it; "r2dreamer",
its default, has no decoder. All without "bfloat16" compute in float32, without torch.compile; r2dreamer's autocast is
switched off, or replaced by one to bfloat16.

Each is a process of its own. They take turns of one update, so other work on the machine affects all alike. The first
update of each is not counted. The table has medians, the number of weights that an update trains, and for this code the
share of a large matrix product's rate (benchmarks/update.py). Beside other programs: --threads 1 --clock processor.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
OURS = ("bfloat16", "float32", "plain", "dreamerv3 bfloat16", "dreamerv3 float32")
FILES = {"release": "co_training.py", "dreamerv3_torch": "dreamer.py", "r2dreamer": "dreamer.py"}
ACTIONS, IMAGE = 6, (64, 64, 3)
SPACES = SimpleNamespace(spaces={"image": np.zeros(IMAGE)}), np.zeros(ACTIONS)  # only their shapes count
Work = tuple[Callable[[], object], int, Callable[[float], float] | None]  # update, weights, share of the product's rate


def random_data(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """A batch (B, T, ...) in the format of the Dreamer repositories, of the middle of episodes."""
    rng, shape = np.random.default_rng(0), (args.batch_size, args.batch_length)
    data = {key: np.zeros(shape) for key in ("is_first", "is_last", "is_terminal")}
    data |= {"image": rng.integers(0, 256, shape + IMAGE), "action": rng.uniform(-1, 1, (*shape, ACTIONS))}
    data["reward"] = rng.uniform(0, 1, shape)
    return {key: value.astype(np.uint8 if key == "image" else np.float32) for key, value in data.items()}


def weights(*modules: Any) -> int:
    """The number of weights in modules."""
    return sum(p.numel() for module in modules for p in module.parameters())


def read_settings(path: Path, blocks: list[str]) -> dict[str, Any]:
    """The blocks of a file of settings, merged in order, with lists as tuples."""
    values: dict[str, Any] = {}
    for block in blocks:
        for key, value in YAML(typ="safe").load(path)[block].items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def ours(name: str, args: argparse.Namespace) -> Work:
    """The target's update of this code, or of its plain reference."""
    import torch

    import config as settings
    from benchmarks.plain import PlainTrainer
    from benchmarks.update import agents, operations, product_rate, update_target
    from training.device import keep_freed_memory

    flags = {"batch_size": str(args.batch_size), "batch_length": str(args.batch_length), "compile": "off"}
    precision = "bfloat16" if "bfloat16" in name else "float32"
    flags, blocks = flags | {"precision": precision, "eta_steps": "1"}, ["dmc"]
    if "dreamerv3" in name:
        blocks, sizes = ["dmc", "dreamerv3"], {"dyn_discrete": 32, "dyn_deter": 600, "dyn_hidden": 600, "units": 400}
        flags |= {key: str(value) for key, value in {**sizes, "cnn_depth": 32}.items()}
    config = settings.Config(**settings.merge(settings.read_blocks(), blocks, flags), configs=[])
    source, target = agents(config, device := torch.device("cpu"))
    batch, trained = target.random_batch(), weights(target.world, target.behavior.actor, target.behavior.critic)
    if name == "plain":
        return partial(PlainTrainer(target).update, batch, source), trained, None
    keep_freed_memory()
    update = partial(update_target, source, target, batch)
    count, dtype = operations(update), getattr(torch, precision)
    return update, trained, lambda seconds: count / seconds / product_rate(device, dtype)


def release(args: argparse.Namespace) -> Work:
    """The target's update of the authors' release, with the paper's sizes."""
    sys.modules["wandb"] = ModuleType("wandb")  # used by its main function only
    import torch

    import co_training

    values = read_settings(args.release / "co_configs.yaml", ["defaults", "dmc"])
    values |= {"dyn_stoch": 32, "dyn_discrete": 32, "dyn_deter": 600, "dyn_hidden": 600, "precision": 32}
    values |= {"batch_size": args.batch_size, "batch_length": args.batch_length, "num_actions": ACTIONS}
    values |= {"device": "cpu", "act": torch.nn.ELU, "sc_traindir": Path("none"), "tg_traindir": Path("none")}
    source, target = (
        co_training.Dreamer(SimpleNamespace(**values | {"sc_domain": domain}), None, None).requires_grad_(False)
        for domain in (True, False)
    )
    trained = weights(target._wm, target._task_behavior.actor, target._task_behavior.value)
    target._wm._tg_wm = source._wm
    target._task_behavior._tg_behavior = source._task_behavior
    return partial(target._train, random_data(args)), trained, None


def dreamerv3_torch(args: argparse.Namespace) -> Work:
    """The update of dreamerv3-torch with the settings of its dmc_vision and the paper's sizes."""
    import dreamer

    values = read_settings(args.dreamerv3_torch / "configs.yaml", ["defaults", "dmc_vision"])
    values |= {"batch_size": args.batch_size, "batch_length": args.batch_length, "num_actions": ACTIONS}
    values |= {"device": "cpu", "compile": False, "dyn_deter": 600, "dyn_hidden": 600, "units": 400}
    agent = dreamer.Dreamer(*SPACES, SimpleNamespace(**values), SimpleNamespace(step=0), None).requires_grad_(False)
    trained = weights(agent._wm, agent._task_behavior.actor, agent._task_behavior.value)
    return partial(agent._train, random_data(args)), trained, None


def r2dreamer(args: argparse.Namespace, loss: str, bfloat16: bool = False) -> Work:
    """The update of r2dreamer with the paper's sizes; ``loss`` is its setting rep_loss."""
    import dreamer
    import torch
    from hydra import compose, initialize_config_dir
    from tensordict import TensorDict

    values = {"deter": 600, "hidden": 600, "units": 400, "discrete": 32, "depth": 32}
    values |= {"rep_loss": loss, "compile": False}
    with initialize_config_dir(str((args.r2dreamer / "configs").resolve()), version_base=None):
        config = compose("configs", ["device=cpu", *(f"model.{key}={value}" for key, value in values.items())])
    dreamer.autocast = lambda **_: torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()
    agent = dreamer.Dreamer(config.model, *SPACES)
    data = {key: torch.from_numpy(value) for key, value in random_data(args).items()}
    data |= {key: data[key].unsqueeze(-1) for key in ("reward", "is_last", "is_terminal")}
    data["is_first"] = data["is_first"].bool()
    batch, initial = TensorDict(data, (args.batch_size, args.batch_length)), agent.rssm.initial(args.batch_size)
    replay = SimpleNamespace(sample=lambda: (batch.copy(), None, initial), update=lambda *latents: None)
    return partial(agent.update, replay), sum(p.numel() for p in agent._named_params.values()), None


MAKE = {
    **{name: partial(ours, name) for name in OURS},
    "release": release,
    "dreamerv3_torch": dreamerv3_torch,
    "r2dreamer": partial(r2dreamer, loss="r2dreamer"),
    "r2dreamer, decoder": partial(r2dreamer, loss="dreamer"),
    "r2dreamer, decoder, bfloat16": partial(r2dreamer, loss="dreamer", bfloat16=True),
}


def compute(args: argparse.Namespace) -> None:
    """Answer every number of threads on stdin with the seconds of an update, the weights and the share, as JSON."""
    answers, sys.stdout = sys.stdout, None  # their code prints too
    sys.path[0] = str(getattr(args, args.name.split(",")[0], ROOT))
    import torch

    torch.manual_seed(0)
    update, trained, share_of = MAKE[args.name](args)
    for line in sys.stdin:
        torch.set_num_threads(int(line))
        start = time.perf_counter(), time.process_time()
        update()
        answer = {"seconds": time.perf_counter() - start[0], "processor": time.process_time() - start[1]}
        answer |= {"weights": trained, "share": share_of(answer["seconds"]) if share_of else None}
        print(json.dumps(answer), file=answers, flush=True)


class Peer:
    """The process of one row of the table, which waits between its turns."""

    def __init__(self, name: str):
        command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--name", name]
        self.process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.name, self.turns = name, {}  # turns: what `update` returned, by number of threads

    def update(self, threads: int) -> dict[str, float]:
        """Answer of `compute` for one update. Raises BadInput if the process ended; it has printed why."""
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{threads}\n")
            self.process.stdin.flush()
        if line := self.process.stdout.readline():
            return json.loads(line)
        raise BadInput(f"{self.name} ended: its error is above")

    def median(self, threads: int, key: str) -> float:
        return statistics.median(turn[key] for turn in self.turns[threads])

    def row(self, threads: list[int], clock: str, fastest: "Peer") -> str:
        """A line of the table."""
        cells = [f"`{self.name}`", f"{self.median(threads[0], 'weights') / 1e6:.1f}"]
        for number in threads:
            seconds = self.median(number, clock)
            counted = clock == "seconds" and self.turns[number][0]["share"] is not None
            share = f"{self.median(number, 'share'):.0%}" if counted else ""
            cells += [f"{seconds:.2f}", f"{seconds / fastest.median(number, clock):.1f}", share]
        return f"| {' | '.join(cells)} |"


def table(args: argparse.Namespace) -> Iterator[str]:
    """The table's lines, when all rounds are done."""
    peers = [Peer(name) for name in args.rows if name in OURS or getattr(args, name.split(",")[0])]
    try:
        for peer in peers:
            peer.update(max(args.threads))  # not counted
        for _ in range(args.rounds):
            for number in args.threads:
                for peer in peers:
                    peer.turns.setdefault(number, []).append(peer.update(number))
                    print(f"{peer.name}, threads {number}: {peer.turns[number][-1]}", file=sys.stderr, flush=True)
    finally:
        for peer in peers:
            peer.process.kill()
            peer.process.wait()
    yield f"| | million weights |{''.join(f' s, threads: {n} | times the first | share |' for n in args.threads)}"
    yield "|---|---" + "|---|---|---" * len(args.threads) + "|"
    yield from (peer.row(args.threads, args.clock, peers[0]) for peer in peers)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    for name, file in FILES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"a checkout, with its {file}")
    parser.add_argument("--rows", nargs="+", choices=MAKE, default=list(MAKE), help="of the table (default: all)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--clock", choices=("seconds", "processor"), default="seconds", help="processor: its seconds")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--batch_length", type=int, default=50)
    parser.add_argument("--name", choices=MAKE, help=argparse.SUPPRESS)  # of a process that computes
    return parser.parse_args()


def main() -> None:
    args = parse(Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    for name, file in FILES.items():
        if (folder := getattr(args, name)) and not (folder / file).is_file():
            raise BadInput(f"--{name} {folder}: no {file} there")
    if min(*args.threads, args.rounds, args.batch_size, args.batch_length) < 1:
        raise BadInput("numbers of threads, rounds, sequences and steps are at least 1")
    print("\n".join(table(args)))


if __name__ == "__main__":
    if "--name" in sys.argv:  # nothing of this code is imported yet, because theirs has modules of the same names
        compute(parse(argparse.ArgumentParser()))
    else:
        sys.path.insert(0, str(ROOT))  # to run this file from anywhere
        from tools import BadInput, Parser, exit_on_bad_input

        exit_on_bad_input(main)
