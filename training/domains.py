"""The domains of a run: each has a task, data, an agent and batches; an `OnlineDomain` has simulators too."""

import json
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base import BaseAgent, Batch
from config import Config, target_task
from replay import DataMapping, OfflineDataset, OnlineReplay, Prefetcher, SequenceStore, first_image_shape
from replay.episode import CLIP_ADVICE
from tools import BadInput
from training.collector import Collector
from training.device import generator_state, restore_generator, to_device, to_tensors
from training.domain_senses import check_sources, check_target_simulator, dataset_senses, online_senses
from training.evaluator import Evaluator
from training.logger import Logger
from training.methods import AgentBuilder, Method, online_tasks
from training.policies import Policy, agent_policy
from wrappers import Task
from wrappers.shared.cameras import split_cameras
from wrappers.shared.simulators import check_recorded_alike, collection_envs

SMALLEST_SIDE = 18  # pixels of the smallest images that every model-free agent's encoder takes


class Domain:
    """A domain with stored data: the target's dataset. ``rng`` is the RNG of its batches."""

    def __init__(
        self, name: str, task: Task, store: SequenceStore, agent: BaseAgent, config: Config, rng: np.random.Generator
    ):
        self.name, self.task, self.store, self.agent, self.config = name, task, store, agent, config
        self._prefetcher = Prefetcher(self._sample, rng)

    @property
    def cameras(self) -> list[str]:
        """The names of its cameras, if there are several."""
        return list(self.store.cameras)

    def next_batch(self) -> Batch:
        """A batch on the device, what the agent's `sample` draws."""
        return to_device(self._prefetcher.next(), self.agent.device)

    def _sample(self) -> Batch:
        return to_tensors(self.agent.sample(self.store, self._prefetcher.rng), self.agent.device)

    def open_loop(self, sequences: int, context: int, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
        """True and predicted images, uint8 (B, T, H, W, 3 a camera), without a change of any RNG state.

        None if there is no data, or the agent has no world model of images.
        """
        if self.store.episodes == 0 or self.agent.world is None or not self.agent.senses.channels:
            return None
        count, length = min(sequences, self.config.batch_size), min(self.config.batch_length, self.store.longest)
        keys = (*self.agent.senses.keys, "action")
        arrays = self.store.sample(count, length, np.random.default_rng(seed), keys, whole=True)
        batch = to_device(to_tensors(arrays, self.agent.device), self.agent.device)
        with torch.random.fork_rng():
            predicted = self.agent.world.open_loop(batch, min(context, length - 1))
        return arrays["image"], predicted.cpu().numpy()

    def discard_prefetched(self) -> None:
        """Undo the sampling of the batch that was sampled ahead; call before the store changes or is saved."""
        self._prefetcher.discard_pending()

    def state_dict(self) -> dict[str, Any]:
        """The state of the batches; the agent is saved by itself."""
        return {"sampling": generator_state(self._prefetcher.rng)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_generator(self._prefetcher.rng, state["sampling"])

    def after_save(self) -> None:
        """Call when a checkpoint with `state_dict` is on the disk."""

    def close(self) -> None:
        self._prefetcher.close()


class OnlineDomain(Domain):
    """A domain whose agent learns in a simulator.

    ``seed`` is that of its episodes, ``action_noise`` the weight of the noise in its actions.
    """

    store: OnlineReplay

    @property
    def cameras(self) -> list[str]:
        cameras = split_cameras(self.collector.slots[0].env.get_wrapper_attr("description")["camera"])
        return cameras if len(cameras) > 1 else []

    def __init__(
        self, name: str, task: Task, store: OnlineReplay, agent: BaseAgent, config: Config, rng: np.random.Generator,
        *, envs: list[Any], seed: int, action_noise: float, logger: Logger,
    ):  # fmt: skip
        super().__init__(name, task, store, agent, config, rng)
        self.collector, self.logger = Collector(envs, self._add_episode, seed, action_noise), logger

    @property
    def policy(self) -> Policy:
        """The agent's policy for collecting: samples."""
        return agent_policy(self.agent, sample=True)

    def _add_episode(self, episode: dict[str, np.ndarray]) -> None:
        self.discard_prefetched()
        self.store.add_episode(episode)
        metrics = {
            "episode_return": float(episode["reward"].sum()),
            "episode_length": len(episode["reward"]) - 1,
        }
        if "success" in episode:
            metrics["episode_success"] = float(episode["success"].max())
        self.logger.add(self.name, metrics)

    def clear(self) -> None:
        """Delete the episodes that a killed run left, if it had no checkpoint yet."""
        self.store.load_state_dict({"episodes": [], "added": 0})

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "replay": self.store.state_dict(),
            "collector": self.collector.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.store.load_state_dict(state["replay"])
        self.collector.load_state_dict(state["collector"], self.agent.device)

    def after_save(self) -> None:
        self.store.delete_evicted()


def fit_image_size(config: Config, method: Method) -> Config:
    """For model-free agents: the settings with a smaller ``size`` if the dataset's images are smaller.

    Prints a note then. Raises BadInput if there is no dataset.
    """
    if method.world_model or not method.dataset or not config.offline_traindir:
        return config
    shape = first_image_shape(config.offline_traindir, config.dataset_format, data_mapping(config))
    side = max(min(shape[:2]), SMALLEST_SIDE) if shape else config.size[0]
    if side >= config.size[0]:
        return config
    given = "x".join(map(str, config.size))
    print(f"note: images of {side}x{side} instead of {given}: the dataset has {shape[0]}x{shape[1]}", file=sys.stderr)
    return config.replace(size=[side, side])


def data_mapping(config: Config) -> DataMapping:
    """The names of the dataset's arrays, and the limits of reading them."""
    keys = config.image_key, config.action_key, config.reward_key, config.done_key
    limits = {"read_memory": config.read_memory, "read_seconds": config.read_seconds}
    reading = {"action_at": config.action_at, "state_keys": config.state_keys, "split": config.split}
    return DataMapping(*keys, **limits, **reading)


def open_dataset(config: Config, method: Method) -> OfflineDataset:
    """The target's dataset. Raises BadInput if there is none or it cannot be used."""
    if not config.offline_traindir:
        raise BadInput("--offline_traindir is missing: give the folder of the target dataset's episodes")
    return OfflineDataset(
        config.offline_traindir,
        size=config.size[0],
        format=config.dataset_format,
        cache_dir=config.dataset_cache or None,
        mapping=data_mapping(config),
        action_range=config.action_range,
        sample_ends=config.sample_ends,
    )


def domain_tasks(config: Config, method: Method) -> dict[str, tuple[Task, str]]:
    """Name -> (task, role) of every domain of a run, online ones first."""
    tasks = online_tasks(config, method)
    return tasks | ({"target": (target_task(config), "target")} if method.dataset else {})


def simulated_tasks(tasks: dict[str, tuple[Task, str]]) -> dict[str, tuple[Task, str]]:
    """Those of `domain_tasks` that have a simulator."""
    return {name: (task, role) for name, (task, role) in tasks.items() if task.suite}


def hold_out_episodes(config: Config, dataset: OfflineDataset) -> SequenceStore | None:
    """Take the share ``holdout`` of the episodes out of ``dataset``; None if it is 0. The run's seed decides which."""
    return dataset.hold_out(config.holdout, np.random.default_rng([config.seed, 0, 11])) if config.holdout else None


def source_seed(seed: int, index: int) -> int:
    """The seed of an online domain's episodes: the run's own for the first one, another for each other one."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index, 7]).generate_state(1)[0])


def open_simulators(config: Config, method: Method, resources: ExitStack) -> dict[str, list[Any]]:
    """The simulators of every online domain, by name. ``resources`` closes them."""
    envs = {}
    for name, (task, role) in online_tasks(config, method).items():
        envs[name] = collection_envs(config, task, role)
        for env in envs[name]:
            resources.callback(env.close)
    return envs


def agent_builder(
    config: Config,
    method: Method,
    device: torch.device,
    envs: dict[str, list[Any]],
    dataset: OfflineDataset | None,
    evaluator: Evaluator,
) -> AgentBuilder:
    """Action sizes and senses of every domain. Raises BadInput if data, simulators and ties do not fit together."""
    action_dims, senses, tasks = {}, {}, domain_tasks(config, method)
    for name, (env, *_) in envs.items():
        action_dims[name] = env.action_space.shape[0]
        senses[name] = online_senses(config, name, env.observation_space, tasks[name][0])
    if dataset is not None:
        action_dims["target"], senses["target"] = dataset.action_dim, dataset_senses(dataset)
        if "target" in evaluator.tasks:
            check_dataset(dataset, evaluator, config)
            task, space = evaluator.tasks["target"][0], evaluator.simulator("target").observation_space
            check_target_simulator(senses["target"], space, config, task)
    check_sources(config, method, senses, tasks)
    return AgentBuilder(config, device, action_dims, senses)


def build_domains(
    config: Config,
    agents: dict[str, BaseAgent],
    tasks: dict[str, tuple[Task, str]],
    envs: dict[str, list[Any]],
    dataset: OfflineDataset | None,
    logger: Logger,
) -> dict[str, Domain]:
    """Every domain of a run by name, online ones first. ``tasks`` are `domain_tasks`, ``envs`` `open_simulators`."""
    domains: dict[str, Domain] = {}
    for index, name in enumerate(envs):
        folder = Path(config.logdir).expanduser() / f"{name}_replay"
        replay = OnlineReplay(folder, capacity=config.replay_size, sample_ends=config.sample_ends)
        # Stream 1 of the run's RNG samples the first online domain's batches, 2 the dataset's, then the others'.
        rng = np.random.default_rng([config.seed, 1 if index == 0 else 2 + index])
        task, role = tasks[name]
        noise = config.action_noise if role == "collect" else 0.0
        collecting = {"envs": envs[name], "seed": source_seed(config.seed, index), "action_noise": noise}
        domains[name] = OnlineDomain(name, task, replay, agents[name], config, rng, **collecting, logger=logger)
    if dataset is not None:
        rng = np.random.default_rng([config.seed, 2])
        domains["target"] = Domain("target", tasks["target"][0], dataset, agents["target"], config, rng)
    return domains


def check_dataset(dataset: OfflineDataset, evaluator: Evaluator, config: Config) -> None:
    """Raises BadInput if the dataset does not fit the target's simulator."""
    expected, found = evaluator.simulator("target").action_space.shape[0], dataset.action_dim
    if expected != found:
        raise BadInput(
            f"--offline_traindir {config.offline_traindir}: its actions have {found} dimensions, those of "
            f"{evaluator.tasks['target'][0]} have {expected}; give that task's dataset"
        )
    check_action_units(dataset, evaluator, config)
    recorded, simulator = recorded_settings(dataset), evaluator.description("target")
    check_recorded_alike(dataset.directory, recorded, simulator, other_task=config.other_task)


def data_properties(store: SequenceStore) -> dict[str, Any] | None:
    """What the agent's user must know of the dataset: units and rows of its actions, shape of its images, of several
    cameras their names and shapes."""
    if not isinstance(store, OfflineDataset):
        return None
    names = ("action_map", "image_shape", "action_names", "action_at", *["cameras"] * bool(store.cameras))
    return {name: getattr(store, name) for name in names}


def check_action_units(dataset: OfflineDataset, evaluator: Evaluator, config: Config) -> None:
    """Raises BadInput if -1 and 1 are other actions in the dataset than in the target's simulator."""
    if dataset.action_map is None:
        return
    low, high = evaluator.simulator("target").get_wrapper_attr("action_bounds")
    margin = 1e-3 * (high - low)
    if all(
        (np.abs(np.array(dataset.action_map[side]) - bound) <= margin).all()
        for side, bound in (("low", low), ("high", high))
    ):
        return
    pairs = np.stack([low, high], 1)
    own = ",".join(f"{number:g}" for number in (pairs[0] if (pairs == pairs[0]).all() else pairs.ravel()))
    given = f"--action_range {config.action_range}" if config.action_range else "dataset.json's action_map"
    clipped = f"; {CLIP_ADVICE}" if own == "-1,1" else ""
    raise BadInput(
        f"--offline_traindir {config.offline_traindir}: {given} is not the range of {evaluator.tasks['target'][0]}'s "
        f"own actions, so that its simulator would act differently: give --action_range {own}, or another target"
        f"{clipped}"
    )


def recorded_settings(dataset: OfflineDataset) -> dict[str, Any]:
    """The dataset's description. ``background`` is None if dataset.json has null for it: recorded without one.

    `OfflineDataset.description` leaves null values out.
    """
    with suppress(OSError, ValueError):
        written = json.loads((dataset.directory / "dataset.json").read_text())
        return {"background": None, **dataset.description} if "background" in written else dataset.description
    return dataset.description
