"""The device, its memory, its threads, and the random number generators."""

import argparse
import ctypes
import json
import random
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

import config as settings
from tools import BadInput
from training.threads import AUTO, available_cores, pick_threads


def pick_device(name: str) -> torch.device:
    """The device of ``auto``, ``cpu``, ``cuda`` or ``cuda:1``. Raises BadInput if it is another, or not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"device {name!r} is not known; give auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"device {name!r} is not supported; give auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"device {name}: torch {torch.__version__} finds no GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device {name}: this machine has {torch.cuda.device_count()} GPUs, numbered from 0")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """``name``; for ``auto``, bfloat16 if ``device`` computes it natively, else float32.

    Native are a CPU's AMX or AVX512-BF16 and a GPU's compute capability 8. Where it is emulated it is slower.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        able = torch.cpu.get_capabilities()
        native = able.get("amx_bf16", False) or able.get("avx512_bf16", False)
    return "bfloat16" if native else "float32"


def add_threads(parser: argparse.ArgumentParser) -> None:
    """The option ``--threads`` of a command without the settings of configs.yaml."""

    def threads(text: str) -> str:
        try:
            settings.check("threads", text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
        return text

    what = "that compute on a CPU: auto (OMP_NUM_THREADS, or else 1) or a number (default: auto)"
    parser.add_argument("--threads", type=threads, default=AUTO, help=f"threads {what}")


def use_threads(threads: str, useful: int = 1) -> int:
    """Compute with `pick_threads` threads from now on. Prints and returns the number."""
    number = pick_threads(threads, useful)
    torch.set_num_threads(number)
    print(f"threads: {number} on {available_cores()} cores", file=sys.stderr)
    return number


def keep_freed_memory(keep: bool = True) -> None:
    """Let the C library keep the memory that one update frees, for the next update.

    By default glibc returns every large block to the system; the page faults of requesting it again take up to half of
    an update on a CPU. Does nothing with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        mallopt(trim_threshold, -1 if keep else 128 * 1024)
        mallopt(mmap_max, 0 if keep else 65536)


def to_tensors(batch: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """A sampled batch as tensors; for a GPU in pinned memory, so that copying does not block."""
    tensors = {k: torch.from_numpy(v) for k, v in batch.items()}
    return {k: v.pin_memory() for k, v in tensors.items()} if device.type == "cuda" else tensors


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch of `to_tensors` on ``device``. Images stay uint8, a quarter of the traffic."""
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


def seed_everything(seed: int) -> None:
    """Seed torch (every device), numpy's global generator and Python's own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_training(seed: int) -> None:
    """Seed torch again, after the agents are built.

    The random numbers of training then do not depend on how many the weights took: two methods that differ in the
    target's networks train equal source agents, see training/pretraining.py.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, 8]).generate_state(1, np.uint64)[0]))


def generator_state(generator: np.random.Generator) -> str:
    """The state of a numpy generator as text, for a checkpoint."""
    return json.dumps(generator.bit_generator.state)


def restore_generator(generator: np.random.Generator, state: str) -> None:
    generator.bit_generator.state = json.loads(state)


def torch_rng_state() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_torch_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    for device, cuda in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):  # there may be fewer now
        torch.cuda.set_rng_state(cuda.cpu(), device)
