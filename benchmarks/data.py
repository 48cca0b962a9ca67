"""Time and memory of opening and sampling offline datasets. The datasets are generated, a small and a large one.

    python benchmarks/data.py [--steps 30000 300000] [--size 32] [--updates 1] [--folder DIR]
    python benchmarks/data.py --large [--gigabytes 25] [--folder DIR]

For each number of steps, a dataset of 500-step episodes is generated and opened twice, each time in a new process. The
second process also draws 50x50 batches and trains the target agent on some of them; its peak memory is reported. At the
end three ways to read a batch are compared: the positioned reads in use, a memory map of the same files, and
decompressing the dataset's files.

With --large, a dataset of compressible 480x640 frames is generated, 25 GB when it is decompressed, half of it in one
episode. `co_training.py --configs defaults dmc debug` trains on it, and the largest sum of memory of its processes is
printed (proportional set size, so pages that several share count once), and that of their resident sets.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

from replay import OfflineDataset, save_episode

ROOT = Path(__file__).resolve().parent.parent
BATCH, LENGTH, EPISODE, BATCHES = 50, 50, 500, 200
PRESETS = ("defaults", "dmc", "small")


def generate(folder: Path, steps: int, size: int) -> None:
    """Write episodes of a moving block on a shaded, noisy floor. They compress about as well as simulator images."""
    rng = np.random.default_rng(0)
    floor = np.linspace(20, 120, size, dtype=np.uint8)[None, :, None, None] * np.ones((1, 1, size, 3), np.uint8)
    for number in tqdm(range(steps // EPISODE), desc=f"generate {steps} steps", disable=None):
        image = floor + rng.integers(0, 2, (EPISODE + 1, size, size, 3), dtype=np.uint8)
        places = np.cumsum(rng.integers(-1, 2, (EPISODE + 1, 2)), 0) % (size - size // 4)
        for frame, (row, column) in zip(image, places, strict=True):
            frame[row : row + size // 4, column : column + size // 4] = rng.integers(0, 256, 3)
        action = rng.uniform(-1, 1, (EPISODE + 1, 6)).astype(np.float32)
        reward = rng.uniform(0, 1, EPISODE + 1).astype(np.float32)
        episode = {"image": image, "action": action, "reward": reward}
        save_episode(folder, episode, id=f"{number:032x}")


def measure(folder: Path, size: int, updates: int) -> dict[str, float]:
    """Open a dataset, sample and train, in this process. Times in seconds, memory in MB."""
    start = time.monotonic()
    dataset = OfflineDataset(folder, size=size)
    found = {"opening": time.monotonic() - start, "opened": peak_memory()}
    if updates < 0:
        return found
    rng = np.random.default_rng(0)
    start = time.monotonic()
    for _ in range(BATCHES):
        dataset.sample(BATCH, LENGTH, rng)
    found |= {"sample": (time.monotonic() - start) / BATCHES, "sampled": peak_memory()}
    if updates > 0:
        found |= {"update": time_update(dataset, size, updates), "trained": peak_memory()}
    return found


def time_update(dataset: OfflineDataset, size: int, updates: int) -> float:
    """Seconds for an update of the target agent (world model, actor, critic), sampling included."""
    import config as settings
    from agents.coworld import TargetAgent
    from training.device import pick_device, to_device, to_tensors

    flags = ["--configs", *PRESETS, "--size", f"{size},{size}", "--batch_size", str(BATCH)]
    config, _ = settings.parse(settings.parser(""), [*flags, "--batch_length", str(LENGTH)])
    device = pick_device(config.device)
    agent = TargetAgent(config, dataset.action_dim, dataset.action_dim, device)
    rng = np.random.default_rng(0)

    def update(step: int) -> None:
        batch = to_tensors(dataset.sample(BATCH, LENGTH, rng), device)
        metrics = agent.update(to_device(batch, device), step=step)
        float(next(iter(metrics.values())))  # waits for the device

    update(0)
    start = time.monotonic()
    for step in range(updates):
        update(1 + step)
    return (time.monotonic() - start) / updates


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_new_process(folder: Path, size: int, updates: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(folder), "--size", str(size), "--updates", str(updates)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def compare_reads(folder: Path, size: int) -> dict[str, float]:
    """Seconds to fill a batch of images in three ways, from one dataset, the system's file cache warm."""
    dataset = OfflineDataset(folder, size=size)
    stored, own = dataset.stored, sorted(folder.glob("*.npz"))
    batch = np.empty((BATCH, LENGTH, size, size, 3), np.uint8)

    def read(file: int, first: int, out: np.ndarray) -> None:
        descriptor = os.open(stored[file].path, os.O_RDONLY)
        os.preadv(descriptor, [out], stored[file].arrays["image"].offset + first * out[0].nbytes)
        os.close(descriptor)

    def memory_map(file: int, first: int, out: np.ndarray) -> None:
        shape = (stored[file].rows, *out.shape[1:])
        images = np.memmap(stored[file].path, np.uint8, "r", stored[file].arrays["image"].offset, shape)
        out[:] = images[first : first + LENGTH]

    def decompress(file: int, first: int, out: np.ndarray) -> None:
        with np.load(own[file]) as arrays:
            out[:] = arrays["image"][first : first + LENGTH]

    times = {}
    for way, rounds in ((read, 40), (memory_map, 40), (decompress, 2)):
        rng = np.random.default_rng(0)
        for timed in (False, True):
            start = time.monotonic()
            for _ in range(rounds if timed else 1):
                for row in range(BATCH):
                    way(int(rng.integers(len(stored))), int(rng.integers(EPISODE - LENGTH)), batch[row])
            times[way.__name__] = (time.monotonic() - start) / rounds
    return times


def size_on_disk(folder: Path) -> tuple[float, float]:
    """Size of the dataset's files and of their uncompressed copy, in MB."""
    own = sum(path.stat().st_size for path in folder.glob("*.npz"))
    return own / 1e6, sum(path.stat().st_size for path in folder.glob(".coworld-cache/**/*.npz")) / 1e6


def report(steps: int, folder: Path, size: int, updates: int) -> None:
    first, second = in_new_process(folder, size, -1), in_new_process(folder, size, updates)
    own, copy = size_on_disk(folder)
    lines = [
        f"{steps} steps of {size}x{size}: files {own:.0f} MB, uncompressed copy {copy:.0f} MB",
        f"  opening     first {first['opening']:.2f} s, second {second['opening']:.3f} s",
        f"  sampling    {1000 * second['sample']:.1f} ms a {BATCH}x{LENGTH} batch",
        f"  peak memory {second['opened']:.0f} MB opened, {second['sampled']:.0f} MB after {BATCHES} batches",
    ]
    if updates > 0:
        share = second["sample"] / second["update"]
        lines[2] += f", {share:.2%} of an update ({second['update']:.2f} s, presets {' '.join(PRESETS)})"
        lines[3] += f", {second['trained']:.0f} MB trained on {updates + 1}"
    print("\n".join(lines), flush=True)


# Episodes that are larger than the memory

FRAME = (480, 640, 3)


def generate_large(folder: Path, gigabytes: float) -> float:
    """Write compressible frames: half of them in one episode, the others in nine. Returns their size in GB."""
    rng = np.random.default_rng(0)
    total = int(gigabytes * 1e9 / np.prod(FRAME))
    for number, rows in enumerate([total // 2] + [total // 18] * 9):
        with zipfile.ZipFile(folder / f"{number}.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("image.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *FRAME)}
                np.lib.format.write_array_header_1_0(file, header)
                frame = np.full(FRAME, 60, np.uint8)
                for row in tqdm(range(rows), desc=f"generate episode {number}", disable=None):
                    frame[:, : row * FRAME[1] // rows] = 180
                    frame[::32, ::32] = rng.integers(0, 256, frame[::32, ::32].shape)
                    file.write(frame)
            others = {"action": rng.uniform(-1, 1, (rows, 6)).astype(np.float32), "reward": np.ones(rows, np.float32)}
            for key, array in others.items():
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
    return (total // 2 + total // 18 * 9) * float(np.prod(FRAME)) / 1e9


def memory_of(process: int) -> tuple[int, int]:
    """Proportional set size and resident set size of a process and its descendants, in bytes."""
    proportional = resident = 0
    waiting = [process]
    while waiting:
        place = Path("/proc", str(waiting.pop()))
        with contextlib.suppress(OSError):
            for children in place.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
            lines = (line.split() for line in (place / "smaps_rollup").read_text().splitlines()[1:])
            sizes = {words[0]: 1024 * int(words[1]) for words in lines}
            proportional, resident = proportional + sizes["Pss:"], resident + sizes["Rss:"]
    return proportional, resident


def measure_large(folder: Path, gigabytes: float) -> None:
    data = folder / "data"
    data.mkdir()
    size = generate_large(data, gigabytes)
    on_disk = sum(path.stat().st_size for path in data.glob("*.npz"))
    command = [sys.executable, ROOT / "co_training.py", "--method", "offline_dv2", "--target_task", "large"]
    command += ["--offline_traindir", data, "--logdir", folder / "run", "--configs", "defaults", "dmc", "debug"]
    start, peaks = time.monotonic(), (0, 0)
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peaks = tuple(map(max, peaks, memory_of(process.pid)))
            time.sleep(0.1)
    copy = sum(path.stat().st_size for path in data.glob(".coworld-cache/**/*.npz"))
    seconds, megabytes = time.monotonic() - start, [round(peak / 1e6) for peak in peaks]
    print(
        f"{size:.1f} GB of frames, {on_disk / 1e6:.0f} MB on disk, copy {copy / 1e6:.0f} MB: {seconds:.0f} s, status "
        f"{process.returncode}\n  peak memory of all processes {megabytes[0]} MB, of resident sets {megabytes[1]} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[30_000, 300_000])
    parser.add_argument("--size", type=int, default=32, help="pixels; 16, 32 or 64")
    parser.add_argument("--updates", type=int, default=1, help="updates of the target agent to time; 0: none")
    parser.add_argument("--folder", type=Path, help="where to put the datasets; a temporary folder by default")
    parser.add_argument("--large", action="store_true", help="train on episodes that are larger than the memory")
    parser.add_argument("--gigabytes", type=float, default=25, help="size of that dataset's frames")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.size, args.updates)))
        return
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        if args.large:
            measure_large(folder, args.gigabytes)
            return
        for steps in args.steps:
            generate(folder / str(steps), steps, args.size)
            report(steps, folder / str(steps), args.size, args.updates)
        ways = compare_reads(folder / str(args.steps[0]), args.size)
        print("reading a batch: " + ", ".join(f"{way} {1000 * seconds:.1f} ms" for way, seconds in ways.items()))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
