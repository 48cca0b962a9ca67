"""Check this program on a GPU: `make gpu-check`, or python benchmarks/gpu_check.py [--out gpu-check.md] [--minutes 5].

It runs every method's updates eager and compiled in float32 and bfloat16, stops and resumes a run, draws frames with
EGL, times updates at the paper's setting, and trains for some minutes. The report is one Markdown file with the GPU's
name, figures and failures; the exit status is 1 if a check failed. `--device cpu` runs the same checks on a CPU with
small networks, without compiling: a test of this file.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

import config as settings
from agents.base import BaseAgent, Metrics
from config import Config
from tools import BadInput, Parser, exit_on_bad_input, write_text
from training.checkpoint import load_checkpoint
from training.methods import METHODS, AgentBuilder

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = {"float32": 0.01, "bfloat16": 0.1}  # relative, of norms, eager against compiled
TASKS = ["--source_task", "walker_walk", "--target_task", "walker_downhill"]


@dataclass
class Report:
    """Sections of the report, and the checks that failed."""

    args: argparse.Namespace
    sections: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def check(self, title: str, work: Callable[["Report"], str]) -> None:
        """Run one check. What it raises is a failure, and the next check runs all the same."""
        print(f"{title} ...", flush=True)
        start = time.monotonic()
        try:
            text = work(self)
        except Exception as error:
            self.failures.append(
                f"{title}: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )
            text = f"FAILED\n\n    {traceback.format_exc().strip()[-1500:]}".replace("\n", "\n    ")
        self.sections.append(f"## {title}\n\n{text}\n\n{time.monotonic() - start:.0f} s")

    def text(self, device: str) -> str:
        failed = "\n".join(f"- {line}" for line in self.failures) or "none"
        return "\n\n".join([f"# Check on {device}", f"Failures: {failed}", *self.sections]) + "\n"


def run(*arguments: object, timeout: float = 1800) -> str:
    """The output of a command of this program. Raises RuntimeError with the end of its errors if it fails."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:3])} ended with status {done.returncode}: {done.stderr[-600:]}")
    return done.stdout


# Updates


def update(config: Config, method: str, device: torch.device) -> dict[str, float]:
    """Losses of one target update of ``method``, and norms of its gradients (the optimisers' first moments)."""
    torch.manual_seed(0)
    names = {"target": 5} if METHODS[method].online in ("", "target") else {"source": 4, "target": 5}
    agents = METHODS[method].agents(AgentBuilder(config, device, names, {}))
    target, source = agents["target"], agents.get("source")
    batch, ties = target.random_batch(), []
    if METHODS[method].aligned_with_sources:
        ties = [source.embed(batch), source.value_bound(batch)]
    elif METHODS[method].shared_world_model:
        ties = [source.random_batch()]
    torch.manual_seed(1)
    metrics: Metrics = target.update(batch, *ties)
    return {key: float(value) for key, value in metrics.items()} | moment_norms(target)


def moment_norms(agent: BaseAgent) -> dict[str, float]:
    norms = {}
    for name in agent.OPTIMIZERS:
        moments = [state["exp_avg"].float().norm() for state in getattr(agent, name).adam.state.values()]
        if moments:  # LOMPO's update leaves the world model as it is
            norms[f"{name} gradient"] = float(torch.stack(moments).norm())
    return norms


def check_updates(report: Report) -> str:
    """The methods, eager against compiled (on a GPU with CUDA graphs), float32 and bfloat16."""
    args, lines = report.args, ["| method | precision | compiled | largest difference |", "|---|---|---|---|"]
    blocks = ["dmc", "debug"] if args.device.type == "cpu" else ["dmc", "small"]
    values = settings.merge(settings.read_blocks(), blocks, {"eta_steps": "100", "kl_free": "0"})
    compiled = args.device.type == "cuda"
    for method, precision in product(args.methods, TOLERANCE):
        config = Config(**values, configs=blocks).replace(method=method, precision=precision, compile="off")
        eager = update(config, method, args.device)
        other = update(config.replace(compile="on" if compiled else "off"), method, args.device)
        differences = {k: abs(other[k] - v) / max(abs(v), 1e-3) for k, v in eager.items()}
        worst = max(differences, key=differences.get)
        lines.append(f"| {method} | {precision} | {compiled} | {differences[worst]:.1e} ({worst}) |")
        if differences[worst] > TOLERANCE[precision]:
            report.failures.append(f"updates: {method} {precision}: {worst} differs by {differences[worst]:.1e}")
    return "\n".join(lines)


# Whole programs


def check_resume(report: Report) -> str:
    """A run stopped in the middle and resumed against one that was not."""
    args = report.args
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = ["--size", "32,32", "--configs", "defaults", "dmc", "debug", "--device", args.device.type]
        run("collect.py", "--task", "walker_downhill", "--out", folder / "data", "--episodes", 3, *size)
        command = ["co_training.py", *TASKS, "--offline_traindir", folder / "data", *size]
        command += ["--pretrain_steps", 40 if args.quick else 100]
        run(*command, "--logdir", folder / "whole")
        stop_at_first_checkpoint([*command, "--logdir", folder / "parts"], folder / "parts" / "checkpoint.pt")
        run(*command, "--logdir", folder / "parts")
        agents = [load_checkpoint(folder / part / "checkpoint.pt")["agents"] for part in ("whole", "parts")]
    worst = max(
        float((agents[0][name]["world"][key].float() - value.float()).abs().max())
        for name, agent in agents[1].items()
        for key, value in agent["world"].items()
    )
    if worst > 1e-2:
        report.failures.append(f"resume: weights differ by {worst:.1e}")
    return f"Largest difference of a weight: {worst:.1e} (0 on a CPU; GPU kernels may add in another order)"


def stop_at_first_checkpoint(arguments: list[object], checkpoint: Path) -> None:
    """Start a command, and send SIGTERM when its first checkpoint exists. Raises RuntimeError if it ends otherwise."""
    process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.05)
    process.terminate()
    errors = process.communicate()[1]
    if process.returncode != 128 + signal.SIGTERM:
        raise RuntimeError(f"not stopped by SIGTERM, but status {process.returncode}: {errors[-600:]}")


def check_rendering(report: Report) -> str:
    """The OpenGL library and device, and frames a second."""
    code = (
        "from wrappers.shared.backend import choose_backend; b = choose_backend(); import mujoco; "
        "c = mujoco.GLContext(8, 8); c.make_current(); from OpenGL import GL; "
        "print(b, '|', GL.glGetString(GL.GL_RENDERER).decode()); c.free()"
    )
    renderer = run("-c", code).strip()
    if report.args.device.type == "cuda" and re.search("llvmpipe|softpipe|osmesa", renderer, re.IGNORECASE):
        report.failures.append(f"rendering is in software: {renderer}; install the GPU's EGL driver")
    frames = run("benchmarks/simulators.py", "--rounds", 1, "--seconds", 1 if report.args.quick else 5)
    return f"{renderer}\n\n```\n{frames.strip()}\n```"


def check_speed(report: Report) -> str:
    """The update benchmark at the paper's setting."""
    args = report.args
    setting = ["debug"] if args.quick else ["paper"]
    texts = []
    for precision in TOLERANCE:
        flags = ["--device", args.device.type, "--precision", precision, "--repeats", 1 if args.quick else 5]
        texts.append(run("benchmarks/update.py", "--settings", *setting, *flags).strip())
    return "```\n" + "\n\n".join(texts) + "\n```"


def check_learning(report: Report) -> str:
    """DreamerV2 online in walker_walk for some minutes: the scores must rise above the random policy's."""
    args = report.args
    blocks = ["debug"] if args.quick else ["small"]
    with tempfile.TemporaryDirectory() as name:
        command = [
            sys.executable,
            "collect.py",
            "--task",
            "walker_walk",
            "--policy",
            "dreamer",
            "--out",
            f"{name}/data",
        ]
        command += [
            "--logdir",
            f"{name}/run",
            "--episodes",
            "4" if args.quick else "1000",
            "--device",
            args.device.type,
        ]
        command += ["--configs", "defaults", "dmc", *blocks, *([] if args.quick else ["--eval_every", "2500"])]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            process.wait(60 * args.minutes)
        except subprocess.TimeoutExpired:
            process.terminate()  # saves and exits
        errors = process.communicate()[1]
        scores = Path(name, "run", "scores.csv").read_text()
        if process.returncode not in (0, 143):
            raise RuntimeError(errors[-600:])
    means = [float(line.split(",")[6]) for line in scores.splitlines()[1:]]
    if not args.quick and (len(means) < 3 or max(means[1:]) < 2 * means[0]):
        report.failures.append(f"learning: scores {means} do not reach twice the random policy's")
    return f"Random policy and then every evaluation: {', '.join(f'{mean:.1f}' for mean in means)}\n\n```\n{scores}```"


CHECKS = {
    "Updates, eager and compiled": check_updates,
    "Stop and resume": check_resume,
    "Rendering": check_rendering,
    "Speed of an update": check_speed,
    "Learning": check_learning,
}


def describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"a CPU ({os.cpu_count()} cores), torch {torch.__version__}"
    gpu = torch.cuda.get_device_properties(device)
    memory, capability = f"{gpu.total_memory / 1e9:.0f} GB", f"{gpu.major}.{gpu.minor}"
    return f"{gpu.name} ({memory}, compute capability {capability}), torch {torch.__version__}"


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-check.md"), help="the report (default: gpu-check.md)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the learning run (default: 5)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only checks whose title has one of these words")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="METHOD", help="to update (default: all)"
    )
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"no GPU: torch {torch.__version__} finds none here; run this on a machine with one")
    args.device, args.quick = torch.device(args.device), args.device == "cpu"
    report = Report(args)
    for title, work in CHECKS.items():
        if not args.only or any(word.lower() in title.lower() for word in args.only):
            report.check(title, work)
    write_text(args.out, report.text(describe(args.device)))
    print(f"{args.out}: {len(report.failures)} failure(s)", *report.failures, sep="\n  ")
    return 1 if report.failures else 0


if __name__ == "__main__":
    exit_on_bad_input(main)
