"""What the paper shows of finished or stopped runs beyond their scores: value estimates against true returns (Fig. 5b),
the two encoders' embeddings before and after alignment (Fig. 11) and frames of an episode (Fig. 8, 9).

python analyse.py --logdir RUN [RUN ...] --episodes 10

All of it is of the target agent; several runs are drawn side by side. The critic's v(s_t) is compared with
G_t = r_t + gamma r_{t+1} + ... of the same episode, up to its last reward. The critic knows no time limit, so where the
limit cuts an episode, G_t lacks the rewards that would have followed: were rewards steady, the share gamma^(T - t + 1)
of them ("unseen"). The two are compared at the steps alone where that share is at most --unseen (at the first step in
any case); an episode that the task itself ends lacks nothing. The table also has the return continued, as if the mean
reward of the episode's last tenth went on for ever: an over-estimate of the one and not of the other is undecided.
"""

import argparse
import csv
import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.signal import lfilter
from sklearn.manifold import TSNE

import driver
import models
import tools
from agents import Agent
from environments import environment
from errors import BadInput, Parser, exit_on_bad_input
from formats.npz import write_atomically
from pictures import plt, save_figure
from run import CHECKPOINT, EVALUATION_SEED, agent_policy, load_agent, open_dataset, pick_device
from wrappers import parse_task

BEFORE = "before_alignment.pt"  # the agents as they were just before the target's first update
FRAMES = 9  # in a strip
COLUMNS = 3  # of the values' panels
CHUNK = 100  # images that are embedded at a time
ESTIMATE, TRUTH = "tab:orange", "tab:blue"
TABLE = (  # heading, column of values.csv, form
    ("score", "score", "10.1f"),
    ("estimate", "estimate", "11.2f"),
    ("true return", "true_return", "13.2f"),
    ("difference", "difference", "+12.2f"),
    ("+-", "difference_std", "9.2f"),
    ("continued", "continued_return", "11.2f"),
    ("difference", "continued_difference", "+12.2f"),
    ("steps", "compared_steps", "7d"),
    ("unseen", "unseen", "8.0%"),
)


# Values (Fig. 5b) -----------------------------------------------------------------------------------------------


@dataclass
class Episode:
    """An evaluation episode of T agent steps.

    estimates (T,): the critic's v(s_t), t = 0 .. T - 1 (the last state is not acted on, nor valued). rewards (T + 1,):
    r_t of arriving at s_t, r_0 = 0. terminated: the task ended it, not the time limit.
    """

    estimates: np.ndarray
    rewards: np.ndarray
    terminated: bool

    def true_returns(self, gamma: float) -> np.ndarray:
        """G_t = sum over k = 0 .. T - t of gamma^k r_{t+k}, (T,)."""
        return lfilter([1.0], [1.0, -gamma], self.rewards[::-1])[::-1][:-1]

    def unseen(self, gamma: float) -> np.ndarray:
        """Share of an endless discounted sum of steady rewards from t on that lies beyond the last, (T,)."""
        steps = len(self.estimates)
        return np.zeros(steps) if self.terminated else gamma ** (steps + 1.0 - np.arange(steps))

    def continued_returns(self, gamma: float) -> np.ndarray:
        """G_t as if the mean reward of the episode's last tenth (one step or more) went on for ever, (T,)."""
        if self.terminated or gamma == 1:  # without discount an endless sum has no value
            return self.true_returns(gamma)
        last = self.rewards[-math.ceil(len(self.estimates) / 10) :].mean()
        return self.true_returns(gamma) + self.unseen(gamma) * last / (1 - gamma)

    def compared(self, gamma: float, limit: float) -> np.ndarray:
        """At which steps at most the share ``limit`` is unseen, (T,) bool; the first step is always one."""
        return self.unseen(gamma) <= max(limit, self.unseen(gamma)[0])


class Recorder(gymnasium.Wrapper):
    """Keeps each episode's rewards, 0 at its reset, and whether the task ended it."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.rewards: list[list[float]] = []
        self.terminated: list[bool] = []

    def reset(self, **settings: Any) -> tuple[dict, dict]:
        self.rewards.append([0.0])
        self.terminated.append(False)
        return self.env.reset(**settings)

    def step(self, action: np.ndarray) -> tuple:
        result = self.env.step(action)
        self.rewards[-1].append(float(result[1]))
        self.terminated[-1] = bool(result[2])
        return result


def valuing_policy(agent: Agent, estimates: list[list[float]]) -> driver.Policy:
    """The agent acting with its mode, N = 1; the critic's v(s_t) of each step goes into ``estimates``, by episode."""
    act = agent_policy(agent, sample=False)

    def policy(observation: driver.Observation, state: Any, first: np.ndarray) -> tuple[np.ndarray, Any]:
        actions, state = act(observation, state, first)
        with torch.no_grad(), agent.autocast():
            value = agent.behaviour.critic(agent.world.rssm.feat(state))
        if first[0]:
            estimates.append([])
        estimates[-1].append(value.item())
        return actions, state

    return policy


@dataclass
class Evaluated:
    """A run's evaluation: its name in tables and pictures, settings, episodes, and the first one's frames."""

    label: str
    config: SimpleNamespace
    episodes: list[Episode]
    frames: np.ndarray

    @property
    def gamma(self) -> float:
        return self.config.discount

    @property
    def task(self) -> str:
        return str(parse_task(self.config.target_task))


def evaluate(logdir: Path, label: str, episodes: int, device: torch.device) -> Evaluated:
    """The target agent's episodes, those of the run's own evaluations, with the critic's estimates."""
    agent, config = load_agent(logdir, "target", device)
    env, estimates = Recorder(environment(config, config.target_task, "target")), []
    with tools.progress_bar(episodes * config.time_limit, f"evaluate {label}", leave=False) as bar:
        policy, seed = valuing_policy(agent, estimates), EVALUATION_SEED + config.seed
        scores = driver.evaluate(policy, [driver.InProcess(env)], episodes, seed, bar.update)
    env.close()
    recorded = [
        Episode(np.array(v), np.array(r), ended)
        for v, r, ended in zip(estimates, env.rewards, env.terminated, strict=True)
    ]
    return Evaluated(label, config, recorded, scores.frames)


def value_row(run: Evaluated, limit: float) -> dict[str, Any]:
    """The run's line of values.csv: means over episodes of the means over an episode's compared steps."""
    gamma, means, shares = run.gamma, [], []
    for episode in run.episodes:
        at = episode.compared(gamma, limit)
        parts = episode.estimates, episode.true_returns(gamma), episode.continued_returns(gamma)
        means.append([part[at].mean() for part in parts])
        shares.append(episode.unseen(gamma)[at])
    (estimate, true, continued), differences = np.mean(means, 0), [m[0] - m[1] for m in means]
    return {
        "run": run.label,
        "task": run.task,
        "discount": gamma,
        "episodes": len(run.episodes),
        "score": float(np.mean([e.rewards.sum() for e in run.episodes])),
        "compared_steps": sum(map(len, shares)),
        "unseen": float(np.concatenate(shares).max()),
        "estimate": float(estimate),
        "true_return": float(true),
        "difference": float(estimate - true),
        "difference_std": float(np.std(differences)),
        "continued_return": float(continued),
        "continued_difference": float(estimate - continued),
    }


def step_rows(run: Evaluated, limit: float) -> list[dict[str, Any]]:
    """The run's lines of value_steps.csv, one for each step of each episode."""
    columns = ("step", "estimate", "true_return", "continued_return", "unseen", "compared")
    rows = []
    for index, e in enumerate(run.episodes):
        returns, continued = e.true_returns(run.gamma), e.continued_returns(run.gamma)
        at = e.compared(run.gamma, limit).astype(int)
        for values in zip(range(len(at)), e.estimates, returns, continued, e.unseen(run.gamma), at, strict=True):
            rows.append({"run": run.label, "episode": index, **dict(zip(columns, values, strict=True))})
    return rows


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def table(rows: list[dict[str, Any]]) -> str:
    """values.csv for a terminal; a positive difference is an over-estimate."""
    width = max(len("run"), *(len(row["run"]) for row in rows))
    headings = [f"{heading:>{len(format(0, form))}}" for heading, _, form in TABLE]
    lines = [f"{'run':{width}}" + "".join(headings)]
    for row in rows:
        lines.append(f"{row['run']:{width}}" + "".join(format(row[key], form) for _, key, form in TABLE))
    return "\n".join(lines)


def values_picture(runs: list[Evaluated], limit: float, path: Path) -> None:
    """A panel a run: estimates and true returns against the step, mean and deviation over episodes."""
    columns = min(COLUMNS, len(runs))
    rows = math.ceil(len(runs) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.8 * columns + 0.6, 3.4 * rows + 0.9),
        squeeze=False,
        sharey=len({run.task for run in runs}) == 1,  # another task's returns are of another size
        layout="constrained",
    )
    for axis, run in zip(axes.flat, runs, strict=False):
        value_panel(axis, run, limit)
        axis.tick_params(labelleft=True)
    for axis in axes.flat[len(runs) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("discounted return")
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, 2 * columns), fontsize=8)
    save_figure(figure, path)


def value_panel(axis: Axes, run: Evaluated, limit: float) -> None:
    gamma, row = run.gamma, value_row(run, limit)
    estimates = by_step([e.estimates for e in run.episodes])
    returns = by_step([e.true_returns(gamma) for e in run.episodes])
    continued = by_step([e.continued_returns(gamma) for e in run.episodes])
    steps = np.arange(len(estimates[0]))
    for (mean, std), colour, name in ((estimates, ESTIMATE, "critic's estimate"), (returns, TRUTH, "true return")):
        axis.plot(steps, mean, color=colour, label=name)
        axis.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
    axis.plot(steps, continued[0], color=TRUTH, linestyle=":", label="true return, last rewards continued")
    last = max(np.flatnonzero(e.compared(gamma, limit))[-1] for e in run.episodes)
    if last < steps[-1]:
        axis.axvspan(last + 0.5, steps[-1] + 0.5, color="0.5", alpha=0.15, linewidth=0, label="not compared")
    axis.set(xlabel="agent step of the episode", xlim=(-0.5, steps[-1] + 0.5))
    axis.set_title(f"{run.label}\nestimate − true return: {row['difference']:+.2f}", fontsize=10)
    axis.grid(alpha=0.3)


def by_step(series: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation at each step over the episodes that last so long, (longest,) each."""
    padded = np.full((len(series), max(map(len, series))), np.nan)
    for row, values in zip(padded, series, strict=True):
        row[: len(values)] = values
    return np.nanmean(padded, 0), np.nanstd(padded, 0)


# Embeddings (Fig. 11) -------------------------------------------------------------------------------------------


@dataclass
class Embedded:
    """One agent's embeddings of the target's images, (N, 1, E), and their mean KL to the target's (Eq. 3's)."""

    name: str
    embed: torch.Tensor
    kl: float = 0.0


def source_agents(config: SimpleNamespace) -> dict[str, str]:
    """The names of a run's source agents in its checkpoint, and each one's task."""
    tasks = [task.strip() for task in config.source_task.split(",") if task.strip()]
    return {"source" if len(tasks) == 1 else f"source_{i}": task for i, task in enumerate(tasks, 1)}


def target_images(config: SimpleNamespace, count: int) -> np.ndarray:
    """At most ``count`` different images of the run's dataset, drawn at random: uint8 (N, 1, H, W, 3)."""
    rng = np.random.default_rng(EVALUATION_SEED + config.seed)
    return np.unique(open_dataset(config).sample(count, 1, rng, ("image",))["image"], axis=0)


def embeddings(
    logdir: Path, config: SimpleNamespace, images: np.ndarray, device: torch.device, file: str
) -> list[Embedded]:
    """What each encoder of the run's ``file`` makes of the same target images; the target's comes first."""
    names, found = {"target": config.target_task, **source_agents(config)}, []
    for name, task in names.items():
        agent, _ = load_agent(logdir, name, device, file=file)
        chunks = [
            agent.embed(tools.to_device({"image": images[i : i + CHUNK]}, device)).float().cpu()
            for i in range(0, len(images), CHUNK)
        ]
        found.append(Embedded(f"{name.replace('_', ' ')}: {task}", torch.cat(chunks)))
    for source in found[1:]:
        source.kl = float(models.state_alignment(source.embed, found[0].embed))
    return found


def alignment(logdir: Path, run: Evaluated, count: int, device: torch.device) -> dict[str, list[Embedded]]:
    """The embeddings before and after alignment, under panel titles, or what there is of them; notes say what not."""
    if not source_agents(run.config):
        note(f"{run.label}: no embeddings, as it has no source agent")
        return {}
    if getattr(run.config, "source_observation", "image") == "state":
        note(f"{run.label}: no embeddings, as its source agent sees states and not images")
        return {}
    files = panel_files(logdir, run.config)
    if BEFORE not in files.values():
        note(f"{run.label}: embeddings of the checkpoint alone, as {logdir} has no {BEFORE}")
    try:
        images = target_images(run.config, count)
        return {title: embeddings(logdir, run.config, images, device, file) for title, file in files.items()}
    except BadInput as error:
        note(f"{run.label}: no embeddings: {error}")
        return {}


def panel_files(logdir: Path, config: SimpleNamespace) -> dict[str, str]:
    """Panel title -> the run's file that it shows; a run without state alignment is shown all the same."""
    if not (logdir / BEFORE).exists():
        return {"in the checkpoint": CHECKPOINT}
    aligned = getattr(config, "method", "coworld") == "coworld" and config.state_alignment
    what = "alignment" if aligned else "training (no state alignment)"
    return {f"before {what}": BEFORE, f"after {what}": CHECKPOINT}


def project(parts: list[Embedded]) -> list[np.ndarray]:
    """t-SNE of all agents' softmaxed embeddings together, a plane (N, 2) each.

    Square roots of the softmaxed features, g of Eq. 3, are what it is given: their Euclidean distance is Hellinger's,
    which is to small KLs as a length to its square. What the alignment does not see, it so does not show either.
    """
    points = torch.cat([part.embed[:, 0].softmax(-1).sqrt() for part in parts]).double().numpy()
    perplexity = min(30.0, (len(points) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    return np.split(plane, len(parts))


def embeddings_picture(runs: dict[str, dict[str, list[Embedded]]], path: Path) -> None:
    """A row a run, a panel each for before and after; a colour an agent, the sources' KL to the target beside it."""
    columns = max(map(len, runs.values()))
    figure, axes = plt.subplots(
        len(runs), columns, figsize=(4.8 * columns, 5.2 * len(runs)), squeeze=False, layout="constrained"
    )
    for row, (label, panels) in zip(axes, runs.items(), strict=True):
        for axis in row[: columns - len(panels)]:  # a lone panel stands where the others' last one does
            axis.set_axis_off()
        for axis, (title, parts) in zip(row[columns - len(panels) :], panels.items(), strict=True):
            embeddings_panel(axis, parts)
            axis.set_title(f"{label}\n{title}", fontsize=10)
    save_figure(figure, path)


def embeddings_panel(axis: Axes, parts: list[Embedded]) -> None:
    for i, (part, plane) in enumerate(zip(parts, project(parts), strict=True)):
        label = part.name + (f" (KL {part.kl:.2g})" if i else "")
        axis.scatter(*plane.T, s=10, color=f"C{i}", alpha=0.6, linewidth=0, label=label)
    axis.set(xticks=[], yticks=[], xlabel="t-SNE, first dimension", ylabel="t-SNE, second dimension")
    axis.legend(fontsize=8, markerscale=2, loc="upper center", bbox_to_anchor=(0.5, -0.06))


# Frames (Fig. 8, 9) ---------------------------------------------------------------------------------------------


def frames_picture(runs: list[Evaluated], path: Path) -> None:
    """A row a run: evenly spaced frames of its first evaluation episode, each with the step and the return so far."""
    figure, axes = plt.subplots(
        len(runs), FRAMES, figsize=(1.5 * FRAMES + 0.5, 1.95 * len(runs)), squeeze=False, layout="constrained"
    )
    for row, run in zip(axes, runs, strict=True):
        total = run.episodes[0].rewards.cumsum()
        shown = np.unique(np.linspace(0, len(total) - 1, FRAMES).round().astype(int))
        for axis, step in zip(row, shown, strict=False):
            axis.imshow(run.frames[step], interpolation="nearest")
            axis.set_title(f"step {step}\nreturn {total[step]:.1f}", fontsize=8)
            axis.set(xticks=[], yticks=[])
        for axis in row[len(shown) :]:
            axis.set_axis_off()
        row[0].set_ylabel(run.label, fontsize=8)
    save_figure(figure, path)


# The command ----------------------------------------------------------------------------------------------------


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def labels(logdirs: list[Path]) -> list[str]:
    """A name for each run: its directory's, with as many of the folders above as tell all runs apart."""
    parts = [logdir.resolve().parts for logdir in logdirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise BadInput("--logdir names a run twice; give each once")


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--logdir", required=True, nargs="+", type=Path, help="run directories that hold checkpoints")
    parser.add_argument("--episodes", type=int, default=10, help="evaluation episodes of each run (default: 10)")
    parser.add_argument("--out", type=Path, help="folder for tables and pictures (default: RUN/analysis of the first)")
    parser.add_argument(
        "--unseen", type=float, default=0.1, help="largest share of a return beyond the time limit (default: 0.1)"
    )
    parser.add_argument("--images", type=int, default=500, help="of the dataset, to embed (default: 500)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    return parser


def check(own: argparse.Namespace) -> None:
    """BadInput on anything that would otherwise show only after the first run has been evaluated."""
    for name in ("episodes", "images"):
        if getattr(own, name) < 1:
            raise BadInput(f"--{name} {getattr(own, name)}: give 1 or more")
    if not 0 <= own.unseen <= 1:
        raise BadInput(f"--unseen {own.unseen}: give a share, from 0 to 1")
    for logdir in own.logdir:
        if not (logdir / CHECKPOINT).exists():
            raise BadInput(f"no checkpoint at {logdir / CHECKPOINT}; train first, or give the run's directory")
    try:
        own.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {own.out} cannot be written: {error.strerror}; choose another") from None


def main(arguments: list[str] | None = None) -> None:
    own = command().parse_args(arguments)
    own.logdir = [logdir.expanduser() for logdir in own.logdir]
    own.out = (own.out or own.logdir[0] / "analysis").expanduser()
    names, device = labels(own.logdir), pick_device(own.device)
    check(own)
    runs, aligned = [], {}
    for logdir, name in zip(own.logdir, names, strict=True):
        runs.append(evaluate(logdir, name, own.episodes, device))
        found = alignment(logdir, runs[-1], own.images, device)
        if found:
            aligned[name] = found
    report_values(runs, own.unseen, own.out)
    if aligned:
        embeddings_picture(aligned, own.out / "embeddings.png")
        print("\n" + alignment_table(aligned))
    frames_picture(runs, own.out / "frames.png")
    written = ["values.csv", "value_steps.csv", "values.png", *["embeddings.png"] * bool(aligned), "frames.png"]
    print(f"\nin {own.out}: {', '.join(written)}")


def report_values(runs: list[Evaluated], limit: float, out: Path) -> None:
    """Write values.csv, value_steps.csv and values.png, and print the table."""
    rows = [value_row(run, limit) for run in runs]
    write_table(rows, out / "values.csv")
    write_table([row for run in runs for row in step_rows(run, limit)], out / "value_steps.csv")
    values_picture(runs, limit, out / "values.png")
    print(table(rows))
    for row in rows:
        if row["unseen"] > limit:
            note(
                f"{row['run']}: its episodes are short for a discount of {row['discount']:g}: compared where the least "
                f"is unseen, up to {row['unseen']:.0%} of a steady reward's value lies beyond the time limit"
            )


def alignment_table(runs: dict[str, dict[str, list[Embedded]]]) -> str:
    """The mean KL of the target's softmaxed embeddings to each source's, before and after."""
    lines = []
    for label, panels in runs.items():
        sources = list(zip(*panels.values(), strict=True))[1:]  # the same agent in each panel
        for parts in sources:
            values = ", ".join(f"{part.kl:.3g} {title}" for part, title in zip(parts, panels, strict=True))
            lines.append(f"{label}: KL of the target's embeddings to {parts[0].name}: {values}")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_bad_input(main)
