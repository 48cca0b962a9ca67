"""Updates on the `meta` device, which has shapes and no values.

There, reading a value (`.item()`, `int(tensor)`, indexing by a tensor of no dimension) raises, and so does an operation
on tensors of two devices. So an update that runs here does not stall a GPU.
"""

import pytest
import torch
from conftest import tiny
from test_agents import batch
from torch import Tensor

from agents.coworld import SourceAgent, TargetAgent
from ops import one_hot
from training.methods import METHODS, AgentBuilder
from training.selector import SourceSelector

META = torch.device("meta")
SETTINGS = [
    {"dyn_discrete": discrete, "grad_accum": parts, "actor_grad": grad}
    for discrete, parts, grad in ((0, 1, "dynamics"), (4, 2, "dynamics"), (4, 1, "reinforce"), (0, 2, "both"))
]


def meta_batch(actions: int) -> dict[str, Tensor]:
    return {key: value.to(META) for key, value in batch(actions).items()}


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("method", METHODS)
def test_updates_of_every_method_read_nothing_from_the_device(
    method: str, settings: dict, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(one_hot, "SMALLEST", 1)  # latents as small as these also take the path of large ones
    config = tiny(size="32,32", method=method, eta_steps=100, pred_discount=True, imag_starts=5, **settings)
    names = {"target": 5} if METHODS[method].online in ("", "target") else {"source": 4, "target": 5}
    agents = METHODS[method].agents(AgentBuilder(config, META, names, {}))
    target, source = agents["target"], agents.get("source")
    if source is not None:
        source.update(meta_batch(4), meta_batch(5), step=3)
    if METHODS[method].elastic_weights:
        target.copy_from(source)
        target.anchor_to(source, [meta_batch(4)])
    if METHODS[method].online == "" and method != "offline_dv2":
        batch_ = meta_batch(5) if method == "lompo" else target.random_batch()
        metrics = target.update(batch_, step=3)
        assert all(isinstance(value, Tensor) and value.device == META for value in metrics.values())
        return
    peer, critic = None, None
    if METHODS[method].aligned_with_sources:
        selection = SourceSelector(config, ["source"]).select(target, [source], meta_batch(5))
        peer, critic = {"source_embed": selection.embed}, source.frozen_critic
    elif METHODS[method].shared_world_model:
        peer = meta_batch(4)
    metrics = target.update(meta_batch(5), peer, critic, step=3)
    assert all(isinstance(value, Tensor) and value.device == META for value in metrics.values())


@pytest.mark.parametrize("select", ["nearest", "relative"])
def test_distances_to_several_sources_are_measured_on_the_device(select: str):
    """The selector then reads them once an update, because they decide which source's networks are used."""
    config = tiny(size="32,32", select=select)
    sources, target = [SourceAgent(config, 4, 5, META) for _ in range(3)], TargetAgent(config, 5, 5, META)
    embeds = [source.embed(meta_batch(5)) for source in sources]
    distances = SourceSelector(config, ["a", "b", "c"]).measure(target, embeds, meta_batch(5))
    assert distances.shape == (3,) and distances.device == META
    target.update(meta_batch(5), {"source_embed": embeds[1]}, sources[1].frozen_critic, step=3)


def test_the_meta_device_notices_a_read():
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META).sum().item()
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META)[torch.tensor(1, device=META)]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device=META) + torch.ones(3)
