"""What sharing pretraining saves: the wall time of 2 methods x 3 seeds, with and without it, one after the other.

    python benchmarks/sharing.py [--cpus 1]

Two sweeps of the same runs, at a quarter of `demo`'s length, on this machine. The pretraining is a fifth of a run's
updates, as in `demo`. The final agents of the two sweeps have to be equal.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # to run this file from anywhere

from tools import Parser, exit_on_bad_input  # noqa: E402

SPEC = """
configs: [dmc, demo]
data: {data}
grid:
  pair: cheetah_run -> cheetah_downhill
  method: [coworld, dv2_finetune]
  seed: [0, 1, 2]
  pretrain_steps: 200
  prefill: 200
  warmup_updates: 100
  warmup_steps: 50
  target_iterations: 300
  source_iterations: 50
resources: {{cpus: {cpus}}}
"""


def sweep(spec: Path, out: Path, share: bool) -> float:
    """Seconds of a sweep."""
    start = time.perf_counter()
    arguments = [sys.executable, ROOT / "sweep.py", spec, "--out", out, "--set", f"share_pretraining={share}"]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - start


def equal_agents(one: Path, other: Path) -> bool:
    """Whether the two sweeps ended with the same weights, bit for bit."""

    def weights(run: Path) -> dict[str, torch.Tensor]:
        agents = torch.load(run / "checkpoint.pt", weights_only=True)["agents"]
        parts = {f"{name}/{part}": agents[name][part] for name in agents for part in ("world", "behavior")}
        return {f"{part}/{key}": value for part, values in parts.items() for key, value in values.items()}

    for run in sorted(one.glob("*-seed*")):
        mine, theirs = weights(run), weights(other / run.name)
        if mine.keys() != theirs.keys() or not all(torch.equal(mine[key], theirs[key]) for key in mine):
            return False
    return True


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--cpus", type=float, default=1, help="processor cores of a run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.yaml"
        spec.write_text(SPEC.format(data=ROOT / "examples" / "cheetah_downhill", cpus=args.cpus))
        apart, shared = Path(folder) / "apart", Path(folder) / "shared"
        seconds = {"without sharing": sweep(spec, apart, False), "with sharing": sweep(spec, shared, True)}
        equal = equal_agents(apart, shared)
    for name, value in seconds.items():
        print(f"{name:16} {value:6.0f} s")
    print(f"with / without   {seconds['with sharing'] / seconds['without sharing']:6.2f}")
    print(f"final agents are {'equal, bit for bit' if equal else 'NOT equal'}")
    sys.exit(not equal)


if __name__ == "__main__":
    exit_on_bad_input(main)
