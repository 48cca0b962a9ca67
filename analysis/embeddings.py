"""Embeddings of the same target images by all encoders of a run, before and after alignment."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from sklearn.manifold import TSNE

import models
from config import Config
from tools import BadInput
from training.checkpoint import BEFORE_ALIGNMENT, CHECKPOINT, agent_task, check_suites, load_agent
from training.domains import open_dataset
from training.evaluator import EVALUATION_SEED
from training.methods import find_method, online_tasks
from training.visuals import plt, save_figure

CHUNK = 100  # images embedded at a time


@dataclass
class AgentEmbeddings:
    """One agent's embeddings of the target's images, (N, 1, E), and the KL of Eq. 3 between them and the target's.

    ``kl`` is the mean over images of KL[ g(agent's) || g(target agent's) ], in nats; 0 for the target agent.
    """

    name: str
    embed: torch.Tensor
    kl: float = 0.0


Panels = dict[str, list[AgentEmbeddings]]  # by title; the target agent is first


def source_names(config: Config) -> list[str]:
    """The names of a run's source agents in its checkpoint."""
    return [name for name in online_tasks(config, find_method(config.method)) if name != "target"]


def target_images(config: Config, count: int) -> np.ndarray:
    """At most ``count`` different random images of the run's dataset, uint8 (N, 1, H, W, 3)."""
    rng = np.random.default_rng(EVALUATION_SEED + config.seed)
    return np.unique(
        open_dataset(config, find_method(config.method)).sample(count, 1, rng, ("image",))["image"], axis=0
    )


def embed_images(
    logdir: Path, config: Config, images: np.ndarray, device: torch.device, file: str
) -> list[AgentEmbeddings]:
    """The embeddings of ``images`` by every agent in the checkpoint ``file``, the target agent first.

    Of agents with states too they are the image's part.
    """
    found = []
    for name in ("target", *source_names(config)):
        agent, _ = load_agent(logdir, name, device, file=file)
        if agent.senses.channels != images.shape[-1]:
            raise BadInput(f"its {name} agent observes another number of cameras than the target")
        chunks = torch.from_numpy(images).split(CHUNK)
        embed = torch.cat([agent.embed({"image": chunk.to(device)}, image_only=True).float().cpu() for chunk in chunks])
        found.append(AgentEmbeddings(f"{name.replace('_', ' ')}: {agent_task(config, name).name}", embed))
    for source in found[1:]:
        source.kl = float(models.state_alignment(source.embed, found[0].embed))
    return found


def compute_panels(logdir: Path, config: Config, count: int, device: torch.device) -> Panels:
    """The embeddings before and after alignment, of at most ``count`` images.

    Raises BadInput if the run has no source agent with images, or if its dataset or a checkpoint cannot be read.
    """
    check_suites(logdir)
    if not source_names(config):
        raise BadInput("it has no source agent")
    if config.source_observation == "state":
        raise BadInput("its source agent observes states, not images")
    images = target_images(config, count)
    return {
        title: embed_images(logdir, config, images, device, file) for title, file in panel_files(logdir, config).items()
    }


def panel_files(logdir: Path, config: Config) -> dict[str, str]:
    """Panel title -> the checkpoint that it shows. Prints a note if there is none from before the alignment."""
    if not (logdir / BEFORE_ALIGNMENT).exists():
        if find_method(config.method).aligned_with_sources:
            print(f"note: {logdir} has no {BEFORE_ALIGNMENT}: embeddings of {CHECKPOINT} only", file=sys.stderr)
        return {"in the checkpoint": CHECKPOINT}
    what = "alignment" if config.state_alignment else "training (no state alignment)"
    return {f"before {what}": BEFORE_ALIGNMENT, f"after {what}": CHECKPOINT}


def project(parts: list[AgentEmbeddings]) -> list[np.ndarray]:
    """One t-SNE of all agents' embeddings, (N, 2) each.

    Its input is the square root of the softmaxed embeddings, g of Eq. 3. The Euclidean distance between two of them is
    the Hellinger distance up to a constant, and a small KL is proportional to its square. So the picture shows only
    differences that the alignment loss measures.
    """
    points = torch.cat([part.embed[:, 0].softmax(-1).sqrt() for part in parts]).double().numpy()
    perplexity = min(30.0, (len(points) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    return np.split(plane, len(parts))


def embeddings_picture(runs: dict[str, Panels], path: Path) -> None:
    """A row for each run, with a panel before and one after alignment, and a colour for each agent."""
    columns = max(map(len, runs.values()))
    figure, axes = plt.subplots(
        len(runs), columns, figsize=(4.8 * columns, 5.2 * len(runs)), squeeze=False, layout="constrained"
    )
    for row, (label, panels) in zip(axes, runs.items(), strict=True):
        for axis in row[: columns - len(panels)]:  # a single panel is in the last column
            axis.set_axis_off()
        for axis, (title, parts) in zip(row[columns - len(panels) :], panels.items(), strict=True):
            embeddings_panel(axis, parts)
            axis.set_title(f"{label}\n{title}", fontsize=10)
    save_figure(figure, path)


def embeddings_panel(axis: Axes, parts: list[AgentEmbeddings]) -> None:
    for i, (part, plane) in enumerate(zip(parts, project(parts), strict=True)):
        label = part.name + (f" (KL {part.kl:.2g})" if i else "")
        axis.scatter(*plane.T, s=10, color=f"C{i}", alpha=0.6, linewidth=0, label=label)
    axis.set(xticks=[], yticks=[], xlabel="t-SNE, first dimension", ylabel="t-SNE, second dimension")
    axis.legend(fontsize=8, markerscale=2, loc="upper center", bbox_to_anchor=(0.5, -0.06))


def alignment_table(runs: dict[str, Panels]) -> str:
    """For each run and source: the KL between its embeddings and the target's, before and after alignment."""
    lines = ["KL of the target's embeddings to the source's, on the target's images (Eq. 3):"]
    for label, panels in runs.items():
        sources = list(zip(*panels.values(), strict=True))[1:]  # the same agent in each panel
        for parts in sources:
            lines.append(f"{label}, {parts[0].name}")
            lines += [f"  {part.kl:<9.3g} {title}" for part, title in zip(parts, panels, strict=True)]
    return "\n".join(lines)
