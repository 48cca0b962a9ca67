"""What the encoders of a run's agents make of the same target images, before and after alignment."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.axes import Axes
from sklearn.manifold import TSNE

import models
from tools import BadInput
from training.methods import METHODS
from training.visuals import plt, save_figure
from training.trainer import EVALUATION_SEED, open_dataset
from training.selector import online_tasks
from training.trained import BEFORE_ALIGNMENT, CHECKPOINT, agent_task, load_agent

CHUNK = 100  # images that are embedded at a time


@dataclass
class Embedded:
    """One agent's embeddings of the target's images, (N, 1, E), and their mean KL to the target's (Eq. 3's)."""

    name: str
    embed: torch.Tensor
    kl: float = 0.0


Panels = dict[str, list[Embedded]]  # by title; the target's agent first


def source_names(config: SimpleNamespace) -> list[str]:
    """The names of a run's source agents in its checkpoint."""
    return [name for name in online_tasks(config, METHODS[config.method]) if name != "target"]


def target_images(config: SimpleNamespace, count: int) -> np.ndarray:
    """At most ``count`` different images of the run's dataset, drawn at random: uint8 (N, 1, H, W, 3)."""
    rng = np.random.default_rng(EVALUATION_SEED + config.seed)
    return np.unique(open_dataset(config).sample(count, 1, rng, ("image",))["image"], axis=0)


def embeddings(
    logdir: Path, config: SimpleNamespace, images: np.ndarray, device: torch.device, file: str
) -> list[Embedded]:
    """What each encoder of the run's ``file`` makes of the same target images; the target's comes first."""
    found = []
    for name in ("target", *source_names(config)):
        agent, _ = load_agent(logdir, name, device, file=file)
        chunks = torch.from_numpy(images).split(CHUNK)
        embed = torch.cat([agent.embed({"image": chunk.to(device)}).float().cpu() for chunk in chunks])
        found.append(Embedded(f"{name.replace('_', ' ')}: {agent_task(config, name)}", embed))
    for source in found[1:]:
        source.kl = float(models.state_alignment(source.embed, found[0].embed))
    return found


def alignment(logdir: Path, config: SimpleNamespace, count: int, device: torch.device) -> Panels:
    """The embeddings before and after alignment, or what there is of them. BadInput says why there are none."""
    if not source_names(config):
        raise BadInput("it has no source agent")
    if config.source_observation == "state":
        raise BadInput("its source agent sees states and not images")
    images = target_images(config, count)
    return {
        title: embeddings(logdir, config, images, device, file) for title, file in panel_files(logdir, config).items()
    }


def panel_files(logdir: Path, config: SimpleNamespace) -> dict[str, str]:
    """Panel title -> the run's file that it shows; a run without state alignment is shown all the same."""
    if not (logdir / BEFORE_ALIGNMENT).exists():
        if METHODS[config.method].tied:
            print(f"note: {logdir} has no {BEFORE_ALIGNMENT}: embeddings of its checkpoint alone", file=sys.stderr)
        return {"in the checkpoint": CHECKPOINT}
    what = "alignment" if config.state_alignment else "training (no state alignment)"
    return {f"before {what}": BEFORE_ALIGNMENT, f"after {what}": CHECKPOINT}


def project(parts: list[Embedded]) -> list[np.ndarray]:
    """t-SNE of all agents' softmaxed embeddings together, a plane (N, 2) each.

    Square roots of the softmaxed features, g of Eq. 3, are what it is given: their Euclidean distance is Hellinger's,
    which is to small KLs as a length to its square. What the alignment does not see, it so does not show either.
    """
    points = torch.cat([part.embed[:, 0].softmax(-1).sqrt() for part in parts]).double().numpy()
    perplexity = min(30.0, (len(points) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    return np.split(plane, len(parts))


def embeddings_picture(runs: dict[str, Panels], path: Path) -> None:
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


def alignment_table(runs: dict[str, Panels]) -> str:
    """The mean KL of the target's softmaxed embeddings to each source's, before and after."""
    lines = []
    for label, panels in runs.items():
        sources = list(zip(*panels.values(), strict=True))[1:]  # the same agent in each panel
        for parts in sources:
            values = ", ".join(f"{part.kl:.3g} {title}" for part, title in zip(parts, panels, strict=True))
            lines.append(f"{label}: KL of the target's embeddings to {parts[0].name}: {values}")
    return "\n".join(lines)
