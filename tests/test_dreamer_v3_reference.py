"""Whole losses and first gradients of a DreamerV3 agent against r2dreamer's, and of its images against dreamerv3's.

The constants are losses, and norms of gradients, of

- `Dreamer` of github.com/NM512/r2dreamer, commit 546e4fab, with its decoder (``rep_loss: dreamer``), run by its
  `_update_slow_target` and `_cal_grad`;
- `Encoder` and `Decoder` of github.com/danijar/dreamerv3, commit e3f02248, with ``strided: True``.

Both ran on a CPU in float32 with the weights of `filled_agent`, the batch of `batch_of` and the random numbers of
`noise_of`. What was changed there, since it differs by intention (docs/methods.md, DreamerV3):

- Convolutions. r2dreamer has no stride 2. Its encoder was run without pooling and with stride 2, its decoder with zeros
  between pixels in place of repeated ones; all other layers are its own. Pooling itself cannot be compared. Stride 2 is
  compared with dreamerv3's. Its padding has the extra pixel on the other side, so images and kernels were mirrored.
- Samples have dreamerv3's straight-through gradient, and the KL is that of the distributions with their uniform share.
  r2dreamer has the gradient of a Gumbel softmax, and the KL of the logits without the share.
- The range S of the returns was held at 2.5.
- Values include r_t. There, v'_t = (v_t - r_t) / gamma_t, and the critic's target r_t + gamma_t R_t. In imagination r_t
  and gamma_t are the predicted ones; on the batch the stored ones, but for an imagined return: it begins with the
  predicted ones here. The weights of critic and entropy in s_t have no factor gamma_t here. Start states where the task
  terminated have no weight here. On the batch the critic also learns r_t there.
- The actor's last imagined action was left out.
- The critic's loss on the batch does not train the world model.
"""

import math

import pytest
import torch
from conftest import tiny
from torch import Tensor, nn
from updates import dreamer_v3

import models
from agents.base import Batch, Metrics
from agents.coworld import TargetAgent
from models import RolloutNoise
from senses import Senses

SIZES = {
    "size": "16,16", "cnn_depth": 4, "dyn_stoch": 3, "dyn_discrete": 4, "dyn_deter": 16, "dyn_hidden": 12,
    "gru_blocks": 4, "units": 10, "batch_size": 3, "batch_length": 6, "imag_horizon": 4, "actor_entropy": 0.03,
    "discount": 1 - 1 / 333,
}  # fmt: skip
ACTIONS = 3
ENDS = torch.tensor([-1.0, 1.5])  # of the range of returns
JOINED = {  # two weights here that are one there; the norm of both counts
    "world.rssm.cell.mix.weight": "world.rssm.cell.recur.weight",
    "world.rssm.post_embed.weight": "world.rssm.post_deter.weight",
}


def numbers(*shape: int, seed: float = 0.0) -> Tensor:
    """Numbers in [0, 1) that look random and are the same on every machine."""
    steps = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return ((steps.square() * 0.6180339887498949 + seed * 0.3819) % 1).float().reshape(shape)


def fill_weights(module: nn.Module, seed: float) -> None:
    """Weights of every layer of ``module``, in the order of its parameters."""
    with torch.no_grad():
        for layer in module.modules():
            for parameter in layer.parameters(recurse=False):
                seed += 1
                values = 2 * numbers(*parameter.shape, seed=seed) - 1
                fan_in = parameter.numel() // max(parameter.shape[0], parameter.shape[-1]) if parameter.dim() > 1 else 0
                if isinstance(layer, nn.RMSNorm):
                    values = 1 + 0.3 * values
                elif len(parameter) == 255:  # two-hot: predictions of usual size
                    wide = parameter.dim() == 1
                    values = 0.3 * values - (torch.linspace(-12, 12, 255).square() if wide else 0)
                else:
                    values = values * (1.7 * fan_in**-0.5 if fan_in else 0.3)
                parameter.copy_(values)


def filled_agent(**flags: object) -> TargetAgent:
    agent = TargetAgent(tiny(**{**dreamer_v3(), **SIZES, **flags}), ACTIONS, ACTIONS, torch.device("cpu"))
    behavior = agent.behavior
    for i, module in enumerate((agent.world, behavior.actor, behavior.critic, behavior.slow_critic)):
        fill_weights(module, 100 * i)
    with torch.no_grad():  # a probability to continue and KLs of usual size
        agent.world.discount.layers[-1].bias.add_(2)
        for layer in (agent.world.rssm.post_out, agent.world.rssm.prior_layers.layers[-1]):
            layer.weight.mul_(3)
    return agent


def batch_of(agent: TargetAgent) -> Batch:
    """Three sequences: with a time limit after row 2, with terminations in rows 1 and 5, with one episode."""
    config = agent.config
    shape, size = (config.batch_size, config.batch_length), config.size[0]
    first, discount = torch.zeros(shape, dtype=torch.bool), torch.ones(shape)
    first[0, 3] = first[1, 2] = first[2, 0] = True
    discount[1, 1] = discount[1, 5] = 0
    return {
        "image": (256 * numbers(*shape, size, size, 3, seed=0.1)).to(torch.uint8),
        "action": 2 * numbers(*shape, ACTIONS, seed=0.2) - 1,
        "reward": 4 * numbers(*shape, seed=0.3) - 2,
        "discount": discount,
        "is_first": first,
    }


def features(agent: TargetAgent) -> Tensor:
    """Features (B, T, F) with one-hot samples, as of `RSSM.feat`."""
    shape = agent.config.batch_size, agent.config.batch_length
    classes = (4 * numbers(*shape, agent.config.dyn_stoch, seed=0.7)).long()
    one_hot = nn.functional.one_hot(classes, agent.config.dyn_discrete).float().flatten(2)
    return torch.cat([one_hot, 2 * numbers(*shape, agent.config.dyn_deter, seed=0.8) - 1], -1)


def noise_of(agent: TargetAgent) -> tuple[Tensor, RolloutNoise]:
    """The random numbers of the posteriors (B, T, S), and those of the rollouts."""
    config = agent.config
    batch, steps, horizon = config.batch_size, config.batch_length, config.imag_horizon
    latent = numbers(batch * steps, horizon, config.dyn_stoch, seed=0.6)
    uniform = numbers(batch * steps, horizon, ACTIONS, seed=0.7)
    return numbers(batch, steps, config.dyn_stoch, seed=0.5), (latent, uniform, (None,) * horizon)


def first_update() -> tuple[Metrics, dict[str, float]]:
    """The metrics of an update, and the norm of each parameter's gradient. The optimisers change nothing."""
    agent = filled_agent()
    noise, rollout = noise_of(agent)
    agent.noise, agent.behavior.noise = lambda _: noise, lambda *_: rollout
    agent.behavior.return_range.ends.copy_(ENDS)
    for name in agent.OPTIMIZERS:
        getattr(agent, name).step = lambda: torch.zeros(())
    metrics = agent.update(batch_of(agent))
    modules = {"world": agent.world, "actor": agent.behavior.actor, "critic": agent.behavior.critic}
    gradients = {f"{part}.{n}": p.grad.norm().item() for part, m in modules.items() for n, p in m.named_parameters()}
    for second, first in JOINED.items():
        gradients[first] = math.hypot(gradients[first], gradients.pop(second))
    return {**metrics, **{f"{name}_scale": scale for name, scale in agent.scales.items()}}, gradients


@pytest.fixture(scope="module")
def update() -> tuple[Metrics, dict[str, float]]:
    return first_update()


def close(found: list[float], expected: list[float]) -> None:
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image", 73.18625),
        ("reward", 3.162375),
        ("kl", 1.820803),
        ("discount", 0.3522817),
        ("model", 78.52171),
        ("actor", 0.09366807),
        ("critic", 3.998687),
        ("replay_critic", 5.744458),
    ],
)
def test_losses_equal_r2dreamers(update: tuple[Metrics, dict], name: str, expected: float):
    """Those of the world model with their weights."""
    metrics, _ = update
    close([metrics[f"{name}_loss"].item() * metrics.get(f"{name}_scale", 1.0)], [expected])


GRADIENTS = {
    "world.encoder": [2.070109, 1.183042, 0.3097358, 3.107572, 0.9147141, 0.4052417],
    "world.rssm.cell": [
        0.05239449, 0.4842178, 0.1813564, 0.1848736, 0.5037697, 0.1062659, 0.06722301, 0.3662411, 0.07697422, 0.6687891,
        0.2513183, 0.1655161, 0.5640179, 0.7037304,
    ],
    "world.rssm.post_": [0.0949323, 0.7962118, 0.1385385, 0.3040886, 0.16826],
    "world.rssm.prior_layers": [
        0.736647, 3.206789, 0.8210956, 3.062139, 1.492573, 1.407948, 1.24142, 0.7035802,
    ],
    "world.decoder": [
        0.1584872, 1.294327, 2.080433, 1.506585, 0.4938376, 2.694086, 1.294327, 0.9054667, 10.73748, 10.98981, 5.022681,
        10.26477, 9.722969,
    ],
    "world.reward": [0.1475088, 0.07395835, 0.1064196, 0.3679904, 0.2176831],
    "world.discount": [0.7194332, 0.5956271, 0.2028837, 0.2937237, 0.1766958],
    "actor": [
        0.0218136, 0.0121906, 0.005405227, 0.01554408, 0.007918951, 0.004769241, 0.01972976, 0.007561116, 0.004992821,
        0.01031237, 0.004694523,
    ],
    "critic": [
        0.5697765, 0.4290467, 0.1672151, 0.7506841, 0.4527432, 0.3240345, 0.6219315, 0.3799636, 0.1622951, 1.157049,
        0.9656909,
    ],
}  # fmt: skip


@pytest.mark.parametrize("part", GRADIENTS)
def test_first_gradients_equal_r2dreamers(update: tuple[Metrics, dict], part: str):
    """The norm for each weight, in the order of the parameters here. The critic's is of both of its losses."""
    close([norm for name, norm in update[1].items() if name.startswith(part)], GRADIENTS[part])


def test_every_gradient_is_compared(update: tuple[Metrics, dict]):
    assert len(update[1]) == sum(map(len, GRADIENTS.values()))


def test_the_state_loss_equals_r2dreamers():
    agent = TargetAgent(tiny(**dreamer_v3()), ACTIONS, ACTIONS, torch.device("cpu"), Senses(0, {"joints": 5}))
    means = (4 * numbers(2, 3, 5, seed=1.0) - 2).requires_grad_()
    agent.world.means = lambda _: (means,)
    batch = {"joints": 60 * numbers(2, 3, 5, seed=1.1) - 20}
    loss = agent.scales["state"] * agent.world.observation_losses(means, batch)["state"]
    (gradient,) = torch.autograd.grad(loss, means)
    close([loss.item(), gradient.norm().item()], [29.092255, 4.4039569])


def norms(loss: Tensor, module: nn.Module) -> list[float]:
    return [gradient.norm().item() for gradient in torch.autograd.grad(loss, list(module.parameters()))]


def test_the_image_encoder_equals_dreamerv3s_with_strides():
    agent = filled_agent()
    encoder = agent.world.encoder
    embed = encoder(batch_of(agent)["image"])
    loss = (embed * numbers(*embed.shape, seed=0.9)).sum()
    close([loss.item(), embed.norm().item()], [513.69055, 38.679668])
    close(norms(loss, encoder), [206.5466, 487.2432, 67.26349, 918.2584, 745.9665, 268.2941])


def test_the_image_decoder_equals_dreamerv3s_with_strides():
    agent = filled_agent()
    image, decoder, feat = batch_of(agent)["image"], agent.world.decoder, features(agent)
    loss = agent.scales["image"] * models.image_nll(decoder(feat), image)
    close([loss.item(), (decoder(feat) + 0.5).mean().item()], [72.888084, 0.53917015])
    expected = [0.9296458, 1.101073, 1.876772, 1.40404, 0.5247516, 2.203163, 1.101073, 1.013728, 10.05748, 10.35417]
    close(norms(loss, decoder), [*expected, 4.77131, 9.891419, 9.637513])
