"""How many threads a process computes with, and how they wait for each other.

Every command imports this module before torch, because OpenMP reads the environment once, when torch loads it.
`training.device.use_threads` applies the number. For the measurements see docs/performance.md, "Threads".
"""

import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

AUTO = "auto"
WORK = 2_000_000  # multiplications in a matrix product for which a further thread is worth its waiting
WAITING = {"GOMP_SPINCOUNT": "10000"}  # how long a thread without work spins before it sleeps
INTERVAL, LONG_WAIT = 30.0, 1 / 3  # seconds between looks at the waits for cores, and the share that is long
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # the user's own, if one of them is set

if not any(name in os.environ for name in WAIT_SETTINGS):
    os.environ.update(WAITING)


def pick_threads(threads: str, useful: int, cores: int | None = None) -> int:
    """The number of the setting ``threads``. If it is auto, OMP_NUM_THREADS; without that, ``useful``, or fewer cores.

    Threads wait for each other thousands of times in an update. If one of them shares its core with another process,
    all wait each time for the core, and one thread is several times faster. So only free cores count.

    Args:
        useful: the number above which further threads gain too little.
        cores: that other processes leave free; None: `free_cores`.
    """
    if given := given_threads(threads):
        return given
    if useful > 1 and cores is None:
        cores = free_cores()
    return max(1, min(useful, cores or 1))


def given_threads(threads: str) -> int | None:
    """The number of the setting ``threads``, or else of OMP_NUM_THREADS; None if the user gives neither."""
    if threads != AUTO:
        return int(threads)
    match = re.match(r"\s*([1-9]\d{0,3})\s*(,|$)", os.environ.get("OMP_NUM_THREADS", ""))
    return int(match[1]) if match else None


def useful_threads(config: Any, world_model: bool) -> int:
    """The number of threads that the updates of a run can use, on any number of cores.

    It follows from the matrix product that an update repeats most often: of the world model in imagination, or of the
    critic of a model-free method. Simulators take no core from it: at the sizes that use several threads, one that
    steps beside an update needs a few percent of a core.

    Args:
        config: the run's settings.
        world_model: whether its agents have one.
    """
    states = config.batch_size * config.batch_length
    rows = min(config.imag_starts or states, states) if world_model else config.transitions
    units = max(config.dyn_deter, config.units) if world_model else config.q_units
    return max(1, rows * units**2 // WORK)


class CoreWaits:
    """How much the threads of this process wait for cores that other processes use, while a run goes on."""

    def __init__(self) -> None:
        self.at, self.waited = time.monotonic(), seconds_waited()

    def are_long(self) -> bool:
        """Whether they waited for more than a third of the interval that ends now; False while it goes on."""
        now = time.monotonic()
        if now < self.at + INTERVAL:
            return False
        before, self.waited = self.waited, seconds_waited()
        share, self.at = (self.waited - before) / (now - self.at), now
        return share > LONG_WAIT


def seconds_waited(root: Path = Path("/")) -> float:
    """Seconds for which the threads of this process were ready to run, but had no core; 0 if Linux does not say."""
    fields = [text_of(path).split() for path in (root / "proc/self/task").glob("*/schedstat")]
    return sum(int(numbers[1]) for numbers in fields if len(numbers) == 3) / 1e9


# The cores


def available_cores(root: Path = Path("/")) -> int:
    """The physical cores that this process may use, at least 1, by its affinity and the CPU quota of its cgroups.

    ``root`` is the folder with ``proc`` and ``sys``.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({siblings(root, cpu) for cpu in cpus})
    return max(1, math.floor(min([cores, *cpu_quotas(root)])))


def free_cores(root: Path = Path("/"), seconds: float = 0.5) -> int:
    """The cores of `available_cores` that are idle, rounded, in the next ``seconds``; all, if Linux does not say."""
    cores = available_cores(root)
    if cores == 1 or not (before := idle_and_whole(root)):
        return cores
    time.sleep(seconds)
    after = idle_and_whole(root)
    idle, whole = (sum(after[cpu][i] - before[cpu][i] for cpu in before) for i in (0, 1))
    return round(cores * idle / whole) if whole else cores


def idle_and_whole(root: Path) -> dict[int, tuple[int, int]]:
    """For each CPU that the process may use, its idle time and its whole time so far, in the units of /proc/stat."""
    lines = re.findall(r"^cpu(\d+) (.+)$", text_of(root / "proc/stat"), flags=re.MULTILINE)
    times = {int(cpu): list(map(int, fields.split()[:8])) for cpu, fields in lines}
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else times.keys()
    return {cpu: (values[3] + values[4], sum(values)) for cpu, values in times.items() if cpu in allowed}


def siblings(root: Path, cpu: int) -> str:
    """The CPUs of the core that ``cpu`` belongs to, as Linux writes them; ``cpu`` alone if it does not say."""
    return text_of(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def cpu_quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of the process's cgroups (version 1 and 2) and of those above them.

    A container may name a group by its path on the host. Only the top folder is then found: the container's group.
    """
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        for top in (controllers, "cpu") if controllers else ("", "unified"):
            folder = root / "sys/fs/cgroup" / top
            for part in ["", *Path(path.strip("/")).parts]:
                folder /= part
                numbers = " ".join(text_of(folder / name) for name in names)  # of an unlimited group "max" or -1
                if limit := re.fullmatch(r"(\d+) (\d+)", numbers):
                    yield int(limit[1]) / int(limit[2])


def text_of(path: Path) -> str:
    """The contents of a file; "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
