"""Offline figures: how well the target agent fits episodes of the dataset that it was not trained on.

docs/offline_evaluation.md defines them. They need no simulator.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import models
from agents.agent import Agent
from agents.base import BaseAgent, Batch
from agents.model_free import StackAgent
from models import WorldModelOutput
from replay import SequenceStore
from replay.episode import KEYS
from tools import DIVERGED, BadInput
from training.device import to_device, to_tensors
from training.evaluator import EVALUATION_SEED
from training.logger import HORIZONS
from training.values import MOST_UNSEEN, ValuedEpisode, correlation, value_figures
from training.visuals import CONTEXT

EPISODES = 20  # at most, of those held out: their order in the dataset, evenly spaced
AT_ONCE = 5  # episodes whose states are inferred together
CHUNK = 250  # images encoded or decoded together
SEQUENCES = 4  # open-loop predictions of an episode, at most


@dataclass
class ObservedEpisode:
    """An episode of T agent steps with what the agent makes of it.

    Attributes:
        rows: the stored arrays, (T + 1, ...).
        nll: sums over the T + 1 rows of image loss, reward loss and KL, by name.
        value: the critic's estimates, (T + 1,); None if the agent has no critic.
        mode: the mode of the policy in every state, (T + 1, A).
        source_value: the source critic's estimates of the same states, (T + 1,); None without a source.
    """

    rows: dict[str, np.ndarray]
    nll: dict[str, float]
    value: np.ndarray | None
    mode: np.ndarray
    source_value: np.ndarray | None = None

    def valued(self) -> ValuedEpisode:
        """Its estimates and rewards. Where the stored discount is not 0 at the end, a time limit ended it."""
        return ValuedEpisode(self.value[:-1], self.rows["reward"], terminated=bool(self.rows["discount"][-1] == 0))

    def action_distances(self) -> np.ndarray:
        """Root mean square, over the dimensions, of mode minus data's action, (T,). Row t + 1 has the action at s_t."""
        return np.sqrt(np.square(self.mode[:-1] - self.rows["action"][1:]).mean(1))


class OfflineFigures:
    """Computes the offline figures of an agent on held-out episodes, with the same random numbers every time.

    Args:
        store: the held-out episodes; of more than `EPISODES`, that many are used.
        gamma: the discount of the returns.
        seed: of the latents' random numbers. The global RNG state is restored.
    """

    def __init__(self, store: SequenceStore, gamma: float, seed: int):
        self.store, self.gamma, self.seed = store, gamma, EVALUATION_SEED + seed
        chosen = np.linspace(0, store.episodes - 1, min(EPISODES, store.episodes)).round().astype(int)
        self.indices = sorted(chosen.tolist(), key=lambda i: store.stored[i].rows)  # equal lengths together

    @torch.no_grad()
    def compute(self, agent: BaseAgent, source: Agent | None = None) -> dict[str, float]:
        """Name -> figure. One that the episodes are too short or too few for is missing, or that the agent lacks.

        ``source``: the agent whose critic's values of the episodes are compared too. The other figures do not depend on
        it. Raises BadInput if a figure is not finite.
        """
        own_values = None
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            groups = self._groups((*KEYS, *agent.senses.state))
            found = (observe(agent, g, source) if agent.world else observe_frames(agent, g) for g in groups)
            episodes = [episode for group in found for episode in group]
            errors = self._open_loop_errors(agent)
            if source and source.senses.found_in(agent.senses):  # else it cannot read the episodes
                torch.manual_seed(self.seed)  # so that the latents of a copy have equal random numbers
                groups = self._groups((*KEYS, *source.senses.state))
                own_values = [values for group in groups for values in own_estimates(source, group)]
        rows = sum(len(episode.mode) for episode in episodes)
        figures = {name: sum(episode.nll[name] for episode in episodes) / rows for name in episodes[0].nll}
        figures |= open_loop_figures(errors)
        figures |= value_figures([e.valued() for e in episodes if e.value is not None], self.gamma)
        if source:
            figures |= source_figures(episodes, own_values, self.gamma)
        figures["action_distance"] = float(np.concatenate([e.action_distances() for e in episodes]).mean())
        wrong = [name for name, value in figures.items() if not np.isfinite(value)]
        if wrong:
            raise BadInput(f"the offline figure {wrong[0]} is not finite: {DIVERGED}")
        return figures

    def short_episode_note(self) -> str | None:
        """A line if all episodes are too short for value figures (see `value_figures`), else None."""
        steps = max(self.store.stored[i].rows for i in self.indices) - 1
        last = [self.store.read(i, self.store.stored[i].rows - 1)["discount"][0] for i in self.indices]
        if self.gamma ** (steps + 1) <= MOST_UNSEEN or not all(last):
            return None
        return (
            f"note: no value figures: held-out episodes have at most {steps} steps, too short for returns with "
            f"--discount {self.gamma:g}; where the task itself ends an episode, store discount 0 in its last row"
        )

    def _groups(self, keys: Sequence[str]) -> Iterator[list[dict[str, np.ndarray]]]:
        for start in range(0, len(self.indices), AT_ONCE):
            yield [self.store.read(i, keys=keys) for i in self.indices[start : start + AT_ONCE]]

    def _open_loop_errors(self, agent: BaseAgent) -> np.ndarray:
        """`prediction_errors` of all sequences, (sequences, HORIZONS[-1]); NaN after the end of a shorter one."""
        found = [np.empty((0, HORIZONS[-1]))]
        if agent.world is None:
            return found[0]
        for start in range(0, len(self.indices), AT_ONCE):
            by_length: dict[int, list[dict[str, np.ndarray]]] = {}
            for i in self.indices[start : start + AT_ONCE]:
                for sequence in self._sequences(i, (*agent.senses.keys, "action")):
                    by_length.setdefault(len(sequence["image"]), []).append(sequence)
            found += [prediction_errors(agent, sequences) for sequences in by_length.values()]
        return np.concatenate(found)

    def _sequences(self, index: int, keys: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Sequences of an episode that do not overlap, evenly spaced, long enough for all horizons if possible."""
        rows = self.store.stored[index].rows
        length = min(rows, CONTEXT + HORIZONS[-1])
        if length <= CONTEXT:
            return
        for first in np.linspace(0, rows - length, min(SEQUENCES, rows // length)).astype(int):
            yield self.store.read(index, int(first), length, keys)


def infer(agent: Agent, episodes: list[dict[str, np.ndarray]]) -> tuple[Batch, WorldModelOutput]:
    """The states of whole episodes, as a policy infers them that acts in them, each from its first row.

    Returns the episodes as a batch (B, T, ...), `padded`, and what the world model makes of it.
    """
    batch = to_device(to_tensors(padded(episodes), agent.device), agent.device)
    sequences, steps = batch["action"].shape[:2]
    observed = {key: batch[key].flatten(0, 1).unsqueeze(1).split(CHUNK) for key in agent.senses.keys}
    chunks = [dict(zip(observed, parts, strict=True)) for parts in zip(*observed.values(), strict=True)]
    embed = torch.cat([agent.embed(chunk) for chunk in chunks])
    with agent.autocast():
        noise = agent.world.rssm.noise(sequences, steps)
        output = agent.world.rollout_posterior(embed.view(sequences, steps, -1), batch["action"], noise=noise)
    return batch, output


def observe(agent: Agent, episodes: list[dict[str, np.ndarray]], source: Agent | None = None) -> list[ObservedEpisode]:
    """What a Dreamer agent makes of whole episodes, and the ``source``'s critic of the states that it infers."""
    (batch, output), world = infer(agent, episodes), agent.world
    sequences, steps = batch["action"].shape[:2]
    with agent.autocast():
        kl = world.rssm.kl(output.post, output.prior).float().reshape(-1, sequences, steps).mean(0)  # over an ensemble
        reward = world.reward.prediction(output.feat).nll(batch["reward"])
        outputs = [agent.value(output.feat), agent.behavior.actor(output.feat).mode]
        outputs += [source.value(output.feat)] if source else []
    found = []
    for i, episode in enumerate(episodes):
        rows = len(episode["reward"])
        nll = {"image_loss": image_loss(agent, output, i, batch["image"][i, :rows])}
        nll |= {"reward_loss": reward[i, :rows].sum().item(), "kl": kl[i, :rows].sum().item()}
        arrays = (x[i, :rows].float().cpu().numpy() for x in outputs)
        found.append(ObservedEpisode(episode, nll, *arrays))
    return found


def own_estimates(source: Agent, episodes: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """The critic's estimates, (T + 1,) each, of the states that the source's own world model infers."""
    _, output = infer(source, episodes)
    with source.autocast():
        values = source.value(output.feat).float().cpu().numpy()
    return [value[: len(episode["reward"])] for value, episode in zip(values, episodes, strict=True)]


def source_figures(
    episodes: list[ObservedEpisode], own_values: list[np.ndarray] | None, gamma: float
) -> dict[str, float]:
    """Correlations of the source critic's values: with the returns, on the target's latents and on the source's own,
    and between both latents, over all rows. ``own_values``: those of the own latents; None if it infers none.
    """
    values = {"source_return_correlation": [episode.source_value for episode in episodes]}
    if own_values is not None:
        values["source_own_return_correlation"] = own_values
    figures = {}
    for name, estimates in values.items():
        valued = [replace(e.valued(), estimates=v[:-1]) for e, v in zip(episodes, estimates, strict=True)]
        figures[name] = value_figures(valued, gamma).get("value_correlation")
    if own_values is not None:
        both = (np.concatenate(estimates) for estimates in values.values())
        figures["source_latents_correlation"] = correlation(*both)
    return {name: value for name, value in figures.items() if value is not None}


def observe_frames(agent: StackAgent, episodes: list[dict[str, np.ndarray]]) -> list[ObservedEpisode]:
    """`observe` for model-free agents. Q(s_t) begins with the reward after s_t, so v(s_t) is r_t + gamma Q(s_t)."""
    found = []
    for rows in episodes:
        values, modes = agent.evaluate_episode(torch.from_numpy(rows["image"]).to(agent.device))
        value = None
        if values is not None:
            value = rows["reward"] + agent.config.discount * values.float().cpu().numpy()
        found.append(ObservedEpisode(rows, {}, value, modes.float().cpu().numpy()))
    return found


def padded(episodes: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Episodes as one batch (B, T, ...), with zeros after the ends of shorter ones."""
    longest = max(len(episode["reward"]) for episode in episodes)
    batch = {}
    for key, array in episodes[0].items():
        batch[key] = np.zeros((len(episodes), longest, *array.shape[1:]), array.dtype)
        for row, episode in zip(batch[key], episodes, strict=True):
            row[: len(episode[key])] = episode[key]
    return batch


def image_loss(agent: Agent, output: WorldModelOutput, index: int, images: Tensor) -> float:
    """The sum over the rows of one episode, images (T + 1, H, W, C), of `models.image_nll`."""
    total = 0.0
    for feat, truth in zip(output.feat[index, : len(images)].split(CHUNK), images.split(CHUNK), strict=True):
        with agent.autocast():
            mean = agent.world.means(feat.unsqueeze(0))[0]
        total += models.image_nll(mean, truth.unsqueeze(0)).item() * len(truth)
    return total


def prediction_errors(agent: Agent, sequences: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Mean squared errors, over pixels in [0, 1], of images predicted from `CONTEXT` frames and the data's actions.

    sequences: of equal length -> (B, HORIZONS[-1]), the error 1, 2, ... steps after the context; NaN after the end.
    """
    batch = {key: torch.from_numpy(np.stack([s[key] for s in sequences])) for key in sequences[0]}
    predicted = agent.world.open_loop({key: array.to(agent.device) for key, array in batch.items()}, CONTEXT)
    difference = (predicted.cpu().float() - batch["image"].float())[:, CONTEXT:] / 255
    errors = np.full((len(sequences), HORIZONS[-1]), np.nan)
    errors[:, : difference.shape[1]] = difference.square().mean((2, 3, 4)).numpy()
    return errors


def open_loop_figures(errors: np.ndarray) -> dict[str, float]:
    """The mean error at each of `HORIZONS`, and over all steps from the first to the last of them; (B, H) -> figures.

    Horizons that no sequence has are missing.
    """
    has = ~np.isnan(errors).all(0)
    curve = {h: float(np.nanmean(errors[:, h - 1])) for h in range(HORIZONS[0], HORIZONS[-1] + 1) if has[h - 1]}
    if not curve:
        return {}
    mean = {"open_loop_error": float(np.mean(list(curve.values())))}
    return mean | {f"open_loop_error_{h}": curve[h] for h in HORIZONS if h in curve}
