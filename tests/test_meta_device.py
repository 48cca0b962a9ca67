"""Updates on the `meta` device, which has shapes and no values.

There, reading a value (`.item()`, `int(tensor)`, indexing by a tensor of no dimension) raises, and so does an operation
on tensors of two devices. So an update that runs here does not stall a GPU.
"""

import pytest
import torch
from conftest import tiny
from torch import Tensor
from updates import built, transfer, update_all

from agents.base import Metrics
from agents.coworld import SourceAgent, TargetAgent
from ops import one_hot
from training.methods import METHODS
from training.selector import SourceSelector

META = torch.device("meta")
# Few sequences and steps: what a loop reads in its first steps it reads in all.
SHORT = {"batch_size": 2, "batch_length": 3, "imag_horizon": 2}
SETTINGS = [{"dyn_discrete": 0, "grad_accum": 1, "actor_grad": "dynamics"}]
SETTINGS += [{"dyn_discrete": 4, "grad_accum": 2, "actor_grad": "both"}]
WITH_WORLD_MODEL = [name for name, method in METHODS.items() if method.world_model]
SEVERAL_EPISODES = ["coworld", "offline_dv2", "multitask_dv2", "lompo", "drq_bc", "curl"]


@pytest.fixture(autouse=True)
def small_latents_take_the_path_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_hot, "SMALLEST", 1)


def read_nothing(method: str, ends: bool = False, **settings: object) -> None:
    agents = built(method, device=META, pred_discount=True, imag_starts=5, **SHORT, **settings)
    transfer(method, agents)
    metrics: Metrics = update_all(method, agents, ends)
    assert metrics and all(isinstance(value, Tensor) and value.device == META for value in metrics.values())


@pytest.mark.parametrize("method", WITH_WORLD_MODEL)
def test_updates_of_every_method_read_nothing_from_the_device(method: str):
    read_nothing(method, **SETTINGS[0])


@pytest.mark.slow  # of the methods whose agents the next test but one does not update
@pytest.mark.parametrize("method", [name for name in WITH_WORLD_MODEL if name not in SEVERAL_EPISODES])
def test_updates_of_other_methods_with_categorical_latents_read_nothing_from_the_device(method: str):
    read_nothing(method, **SETTINGS[1])


@pytest.mark.parametrize(("discrete", "parts"), [(4, 2), (0, 1)])
def test_a_bound_in_the_sources_latents_reads_nothing_from_the_device(discrete: int, parts: int):
    settings = {"constraint_latents": "source", "value_constraint": "constant", "value_constraint_relative": True}
    read_nothing("coworld", dyn_discrete=discrete, grad_accum=parts, **settings)


@pytest.mark.parametrize("method", SEVERAL_EPISODES)
def test_updates_on_several_episodes_in_a_sequence_read_nothing_from_the_device(method: str):
    world_model = method in WITH_WORLD_MODEL
    read_nothing(method, ends=True, **(SETTINGS[1] if world_model else {}))


@pytest.mark.parametrize(("discrete", "parts"), [(4, 1), (0, 2)])
def test_updates_by_reinforce_read_nothing_from_the_device(discrete: int, parts: int):
    read_nothing("coworld", dyn_discrete=discrete, grad_accum=parts, actor_grad="reinforce")


@pytest.mark.parametrize("method", [name for name in METHODS if name not in WITH_WORLD_MODEL])
def test_updates_of_model_free_agents_read_nothing_from_the_device(method: str):
    """They do not use the settings above."""
    read_nothing(method)


@pytest.mark.parametrize("select", ["nearest", "relative"])
def test_distances_to_several_sources_are_measured_on_the_device(select: str):
    """The selector then reads them once an update, because they decide which source's networks are used."""
    config = tiny(size="32,32", select=select, **SHORT)
    sources, target = [SourceAgent(config, 4, 5, META) for _ in range(3)], TargetAgent(config, 5, 5, META)
    batch = target.random_batch()
    embeds = [source.embed(batch) for source in sources]
    distances = SourceSelector(config, ["a", "b", "c"]).measure(target, embeds, batch)
    assert distances.shape == (3,) and distances.device == META
    target.update(batch, embeds[1], sources[1].value_bound(batch))


def test_the_meta_device_notices_a_read():
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META).sum().item()
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META)[torch.tensor(1, device=META)]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device=META) + torch.ones(3)
