"""The networks of DreamerV2: encoder, decoder, recurrent state-space model, heads and their distributions.

Symbols used in the shapes: B sequences, T steps, S latent variables, K classes of each (categorical latent),
D deterministic units, E embedding, A actions (padded to the larger domain), F = S * K + D features. senses.py puts
encoders and decoders together for agents with several cameras, or states beside the image.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, OneHotCategoricalStraightThrough, kl_divergence

from ops import Float32Linear, compute_dtype, recurrent
from ops.convolution import Conv2d, ConvTranspose2d
from ops.ensemble import EnsembleLinear
from ops.one_hot import FeatureLinear, Features, sampled
from ops.recurrent import Activation, Latent, StepState, StepWeights
from ops.truncated_normal import TruncatedNormal

Distribution.set_default_validate_args(False)  # the checks read every tensor back from the device

State = dict[str, Tensor]  # deter, stoch, and the parameters of the distribution of stoch
Norm = Callable[[int, str], nn.Module] | None  # a norm of so many units, with an activation, in hidden layers of heads


def activation(name: str) -> nn.Module:
    """The class of torch.nn named ``name``; ELU in place, since its gradient needs its result only."""
    return nn.ELU(inplace=True) if name == "ELU" else getattr(nn, name)()


def mlp(
    inputs: int, outputs: int, layers: int, units: int, act: str, last: type[nn.Linear] = nn.Linear, norm: Norm = None
) -> nn.Sequential:
    """``layers`` layers of ``units`` with activation ``act``, and one of type ``last``: of (..., F) or `Sampled`."""
    sizes = [inputs] + [units] * layers
    after = partial(norm, act=act) if norm else lambda _: activation(act)
    hidden = [module for a, b in pairwise(sizes) for module in (FeatureLinear(a, b), after(b))]
    return nn.Sequential(*hidden, last(sizes[-1], outputs))


def scale_image(image: Tensor) -> Tensor:
    """uint8 (..., H, W, C) in 0..255 to float (..., H, W, C) in -0.5..0.5."""
    return (image / 255.0).sub_(0.5)


class ConvEncoder(nn.Module):
    """Images to embeddings by 4x4 convolutions of stride 2, until the side is smaller than 4 pixels.

    64 pixels take the four layers of DreamerV2 (64, 31, 14, 6, 2), 32 pixels three, 128 pixels five.
    """

    def __init__(self, size: int, depth: int, act: str, channels: int = 3):
        super().__init__()
        layers = []
        while size >= 4:
            width = depth * 2 ** (len(layers) // 2)
            layers += [Conv2d(channels, width, 4, stride=2), activation(act)]
            channels, size = width, (size - 4) // 2 + 1
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # the images' layout: 5 % faster
        self.embed = channels * size * size

    def forward(self, image: Tensor) -> Tensor:
        """(B, T, H, W, C) uint8, 3 channels for each camera -> (B, T, E)."""
        x = scale_image(image).flatten(0, 1).permute(0, 3, 1, 2)  # (B * T, C, H, W)
        return self.layers(x).reshape(*image.shape[:2], -1)


class StateEncoder(nn.Module):
    """Low-dimensional observations (B, T, S) to embeddings (B, T, E)."""

    def __init__(self, inputs: int, embed: int, *, layers: int, units: int, act: str, norm: Norm = None):
        super().__init__()
        self.layers, self.embed = mlp(inputs, embed, layers, units, act, norm=norm), embed

    def forward(self, state: Tensor) -> Tensor:
        return self.layers(state)


def decoder_sizes(size: int) -> list[tuple[int, int]]:
    """(kernel, output pixels) of each stride-2 transposed convolution from 1 pixel up to ``size``.

    64 pixels give the kernels 5, 5, 6, 6 of DreamerV2; the first acts on one pixel, so its kernel is its output.
    """
    stages = []
    while size > 6:
        kernel = 6 if size % 2 == 0 else 5
        stages.append((kernel, size))
        size = (size - kernel) // 2 + 1
    return [(size, size), *reversed(stages)]


class ConvDecoder(nn.Module):
    """Features to the mean of a unit Gaussian over the image, by transposed convolutions of stride 2."""

    def __init__(self, feat: int, size: int, depth: int, act: str, channels: int = 3):
        super().__init__()
        (first, _), *stages = decoder_sizes(size)
        widths = [depth * 2 ** max(len(stages) - 1 - i, 0) for i in range(len(stages))] + [channels]
        # A transposed convolution of one pixel is a matrix product, which is much faster.
        self.dense = nn.Linear(feat, 32 * depth)
        self.first = nn.Linear(32 * depth, widths[0] * first * first)
        self.shape = (widths[0], first, first)
        layers = []
        for (kernel, _), a, b in zip(stages, widths[:-1], widths[1:], strict=True):
            layers += [activation(act), ConvTranspose2d(a, b, kernel, stride=2)]
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def forward(self, feat: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, H, W, C), in the scale of `scale_image`."""
        x = self.first(self.dense(feat.flatten(0, 1))).unflatten(-1, self.shape)
        return (
            self.layers(x.contiguous(memory_format=torch.channels_last))
            .permute(0, 2, 3, 1)
            .unflatten(0, feat.shape[:2])
        )


class NormGRUCell(nn.Module):
    """Weights of DreamerV2's GRU: one layer norm over the three gates. `recurrent_step` computes it."""

    def __init__(self, inputs: int, deter: int):
        super().__init__()
        self.gates = nn.Linear(inputs + deter, 3 * deter, bias=False)
        self.norm = nn.LayerNorm(3 * deter)


def recurrent_step(
    w: StepWeights, latent: Latent, act: Activation, a: Tensor, e: Tensor, noise: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor, Tensor], StepState]:
    """One step of an RSSM: h_t = f(h_{t-1}, z_{t-1}, a_t), and z_t ~ q(z_t | h_t, e_t) or, without e_t, p(z_t | h_t).

        x_t = act(W_z z_{t-1} + W_a a_t)
        [r, c, u] = LayerNorm(W_g [x_t, h_{t-1}])
        h_t = (1 - sigmoid(u - 1)) h_{t-1} + sigmoid(u - 1) tanh(sigmoid(r) c)
        z_t ~ the latent with statistics W_s act(W_h h_t + W_e e_t) + b_s

    At the first row of an episode h_{t-1}, z_{t-1} and a_t are zeros, also in the middle of a sequence.

    Args:
        a: W_a a_t with its bias, (N, X). a_t is the action that led to step t, the paper's a_{t-1}.
        e: W_e e_t with its bias, (N, U); for the prior the bias alone, (U,).
        noise: random numbers of the latent, (N, S).
        state: z_{t-1} (N, S * K) and h_{t-1} (N, D).

    Returns:
        z_t, h_t and the statistics, and what `ops.recurrent.step_backward` needs.
    """
    z, h = state
    dtype = w.gates.dtype  # of the products; the norm, the gates and h are float32
    z = z.to(dtype)
    x_in = torch.addmm(a, z, w.stoch_in.t())
    x = act.function(x_in)  # (N, X)
    gru_in = torch.cat([x, h.to(dtype)], -1)
    gates = (gru_in @ w.gates.t()).float()  # (N, 3 D)
    normed, mean, rstd = torch.native_layer_norm(gates, w.norm_weight.shape, w.norm_weight, w.norm_bias, 1e-5)
    reset, raw, update = normed.chunk(3, -1)
    reset, update = torch.sigmoid(reset), torch.sigmoid(update - 1)
    cand = torch.tanh(reset * raw)
    h_next = torch.lerp(h, cand, update)  # (N, D)
    h_cast = h_next.to(dtype)
    hidden_in = torch.addmm(e, h_cast, w.hidden.t())
    hidden = act.function(hidden_in)  # (N, U)
    stat = torch.addmm(w.out_bias, hidden, w.out.t()).float()
    z_next, sample = latent.sample(stat, noise, dtype)  # (N, S * K)
    kept = (x, hidden) if act.by_result else (x_in, hidden_in)
    gru = (gru_in, gates, mean, rstd, reset, raw, cand, update)
    return (z_next, h_next, stat), StepState(z, h, kept[0], *gru, h_cast, kept[1], hidden, sample, noise)


class StateSpaceModel(nn.Module):
    """h_t = f(h_{t-1}, z_{t-1}, a_t), posterior q(z_t | h_t, e_t), prior p(z_t | h_t): what every such model has.

    ``discrete`` classes make the latent categorical (the paper: 32 x 32); 0 makes it Gaussian (the release). Subclasses
    have the equations: `posterior`, `prior` and `imagine_step`, as `RSSM` describes them.
    """

    def __init__(self, stoch: int, deter: int, discrete: int, min_std: float):
        super().__init__()
        self.stoch, self.deter, self.discrete = stoch, deter, discrete
        self.latent = Latent(stoch, discrete, min_std)
        self.stoch_size = stoch * (discrete or 1)
        self.feat_size = self.stoch_size + deter

    def initial(self, batch: int) -> State:
        """The zero state before an episode's first action: stoch (batch, S * K), deter (batch, D)."""
        zeros = next(self.parameters()).new_zeros
        return {"stoch": zeros(batch, self.stoch_size), "deter": zeros(batch, self.deter)}

    def noise(self, batch: int, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """Random numbers for ``steps`` latents of ``batch`` sequences (B, T, S): uniform, or normal if Gaussian.

        Drawn up front, so the update can be compiled or split into micro-batches.
        """
        empty = next(self.parameters()).new_empty(batch, steps, self.stoch)
        return empty.uniform_(generator=generator) if self.discrete else empty.normal_(generator=generator)

    def observe(
        self, embed: Tensor, action: Tensor, state: State | None = None, noise: Tensor | None = None,
        first: Tensor | None = None,
    ) -> tuple[State, State]:  # fmt: skip
        """Posterior and prior of a sequence: embed (B, T, E), action (B, T, A), where action t led to embedding t.

        ``first`` (B, T) is true where an episode begins, if sequences hold several. Returns (posterior, prior): dicts
        of deter (B, T, D), stoch (B, T, S * K) and the distribution's parameters (B, T, ...).
        """
        post = self.posterior(embed, action, state, noise, first)
        return post, {"deter": post["deter"], **self.prior(post["deter"])}

    def draw_members(self, steps: int) -> tuple[Tensor | None, ...]:
        """Which member of an ensemble of priors each of ``steps`` imagined steps uses; None without an ensemble."""
        return (None,) * steps

    def dist(self, state: State) -> Distribution:
        """The latent's distribution: event (S, K) one-hot for a categorical latent, (S,) for a Gaussian one."""
        if self.discrete:
            return Independent(OneHotCategoricalStraightThrough(logits=state["logit"], validate_args=False), 1)
        return Independent(Normal(state["mean"], state["std"], validate_args=False), 1)

    def kl(self, p: State, q: State) -> Tensor:
        """KL[p || q] of the latents of two states, (...)."""
        if not self.discrete:
            return kl_divergence(self.dist(p), self.dist(q))
        log_q, log_p = (state["logit"].log_softmax(-1) for state in (q, p))
        return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum((-2, -1))  # faster than torch's classes

    @staticmethod
    def feat(state: State) -> Tensor:
        """The input of every head, (..., F), in the dtype of `ops.compute_dtype`."""
        dtype = compute_dtype(state["deter"].device)
        return torch.cat([state["stoch"].to(dtype), state["deter"].to(dtype)], -1)

    def sampled(self, feat: Tensor) -> Features:
        """`feat` of sampled states, not of zero ones, in the form that heads compute fastest."""
        return sampled(feat, self.stoch, self.discrete)


class RSSM(StateSpaceModel):
    """DreamerV2's recurrent state-space model.

    Only the recurrent part runs step by step. The projections of embeddings and actions before the scan and the prior
    after it are one matrix product each over all steps.
    """

    def __init__(
        self, embed: int, action: int, *, stoch: int, deter: int, hidden: int, discrete: int, min_std: float, act: str
    ):
        super().__init__(stoch, deter, discrete, min_std)
        stats = stoch * (discrete or 2)
        self.act = recurrent.ACTIVATIONS[act]
        self.action_in = nn.Linear(action, hidden)
        self.stoch_in = nn.Linear(self.stoch_size, hidden, bias=False)
        self.cell = NormGRUCell(hidden, deter)
        self.prior_hidden, self.prior_out = nn.Linear(deter, hidden), nn.Linear(hidden, stats)
        self.post_embed = nn.Linear(embed, hidden)
        self.post_deter, self.post_out = nn.Linear(deter, hidden, bias=False), nn.Linear(hidden, stats)

    def posterior(
        self, embed: Tensor, action: Tensor, state: State | None = None, noise: Tensor | None = None,
        first: Tensor | None = None,
    ) -> State:  # fmt: skip
        """`observe` without the prior, which acting does not need."""
        state = state or self.initial(embed.shape[0])
        noise = self.noise(*embed.shape[:2]) if noise is None else noise
        action = action if first is None else action.masked_fill(first.unsqueeze(-1), 0.0)
        weights = self._step_weights(self.post_deter.weight, self.post_out.weight, self.post_out.bias)
        stoch, deter, stat = self._scan(weights, action, self.post_embed(embed), noise, state, first)
        return {"deter": deter, "stoch": stoch, **self.latent.parameters(stat)}

    def _step_weights(self, hidden: Tensor, out: Tensor, out_bias: Tensor) -> StepWeights:
        norm = self.cell.norm
        return StepWeights(self.stoch_in.weight, self.cell.gates.weight, norm.weight, norm.bias, hidden, out, out_bias)

    def _scan(
        self, weights: StepWeights, action: Tensor, given: Tensor, noise: Tensor, state: State,
        first: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        initial = state["stoch"], state["deter"]
        return recurrent.scan(
            recurrent_step, weights, self.latent, self.act, self.action_in(action), given, noise, initial, first
        )

    def imagine_step(
        self, state: State, action: Tensor, noise: Tensor | None = None, member: Tensor | None = None
    ) -> State:
        """One step of the prior: state of (N, ...), action (N, A) -> the next state, with a sampled stoch.

        ``noise`` is `noise` of one step (N, ...), ``member`` one of `draw_members`; both are drawn if None.
        """
        noise = self.noise(len(action), 1)[:, 0] if noise is None else noise
        (member,) = self.draw_members(1) if member is None else (member,)
        hidden, given, *out = self.prior_weights(member)
        columns = self._scan(self._step_weights(hidden, *out), action[:, None], given, noise[:, None], state)
        stoch, deter, stat = (column.squeeze(1) for column in columns)
        return {"deter": deter, "stoch": stoch, **self.latent.parameters(stat)}

    def prior_weights(self, member: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the prior's two layers."""
        return self.prior_hidden.weight, self.prior_hidden.bias, self.prior_out.weight, self.prior_out.bias

    def prior(self, deter: Tensor, member: Tensor | None = None) -> State:
        """Parameters of p(z_t | h_t), (..., D) -> (..., S, K) or (..., S)."""
        return self.latent.parameters(self.prior_out(self.act.function(self.prior_hidden(deter))))


class EnsembleRSSM(RSSM):
    """An RSSM whose prior is an ensemble of K members (V-D4RL's Offline DV2). An imagined step uses one of them."""

    def __init__(self, embed: int, action: int, *, members: int, **sizes: Any):
        super().__init__(embed, action, **sizes)
        self.members = members
        self.prior_hidden = EnsembleLinear(members, self.deter, self.prior_hidden.out_features)
        self.prior_out = EnsembleLinear(members, self.prior_hidden.weight.shape[1], self.prior_out.out_features)

    def draw_members(self, steps: int) -> tuple[Tensor, ...]:
        """A scalar index for each step, for all start states."""
        return torch.randint(self.members, (steps,), device=self.action_in.weight.device).unbind(0)

    def prior(self, deter: Tensor, member: Tensor | None = None) -> State:
        """As `RSSM.prior` of one ``member``; of all members with a first dimension K: (K, ..., S, C) or (K, ..., S)."""
        if member is not None:
            hidden = self.act.function(self.prior_hidden(deter, member))
            return self.latent.parameters(self.prior_out(hidden, member))
        x = deter.flatten(0, -2).expand(self.members, -1, -1)  # (K, N, D)
        stat = self.prior_out(self.act.function(self.prior_hidden(x)))
        return self.latent.parameters(stat.unflatten(1, deter.shape[:-1]))

    def prior_weights(self, member: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *self.prior_hidden.member(member), *self.prior_out.member(member)


class Actor(nn.Module):
    """Features to a truncated normal over the agent's own A actions, before any padding."""

    def __init__(
        self, feat: int, action: int, *, layers: int, units: int, act: str, min_std: float, norm: Norm = None,
        outputs: int | None = None,
    ):  # fmt: skip
        """``outputs`` is the number of actions that the last layer has outputs for; the first A are used."""
        super().__init__()
        self.outputs = outputs or action
        self.layers = mlp(feat, 2 * self.outputs, layers, units, act, last=Float32Linear, norm=norm)
        self.action_dim, self.min_std = action, min_std

    def forward(self, feat: Features) -> TruncatedNormal:
        """(..., F) -> a distribution over (..., A)."""
        mean, std = (x[..., : self.action_dim] for x in self.layers(feat).chunk(2, -1))
        return TruncatedNormal(torch.tanh(mean), 2 * torch.sigmoid(std / 2) + self.min_std)


def scalar_nll(mean: Tensor, value: Tensor) -> Tensor:
    """-ln N(value; mean, 1) without its constant, elementwise: Eq. 2's reward term, Eq. 11's squared error."""
    return 0.5 * (mean - value).square()


class UnitNormal(NamedTuple):
    """N(mean, 1), elementwise."""

    mean: Tensor

    def nll(self, value: Tensor) -> Tensor:
        return scalar_nll(self.mean, value)


class ScalarHead(nn.Module):
    """Features to one number: the mean of a unit Gaussian (reward, value) or a logit (discount)."""

    def __init__(self, feat: int, *, layers: int, units: int, act: str, norm: Norm = None):
        super().__init__()
        self.layers = mlp(feat, 1, layers, units, act, last=Float32Linear, norm=norm)

    def prediction(self, feat: Features) -> UnitNormal:
        """(..., F) -> the distribution of a reward or a value, (...)."""
        return UnitNormal(self(feat))

    def forward(self, feat: Features) -> Tensor:
        """(..., F) -> (...)."""
        return self.layers(feat).squeeze(-1)


def first_rows(*batches: dict[str, Tensor]) -> Tensor | None:
    """`is_first` of batches, (B, T) in all, one below the other; None if none of them has it."""
    if not any("is_first" in batch for batch in batches):
        return None
    return torch.cat([b.get("is_first", torch.zeros_like(b["reward"], dtype=torch.bool)) for b in batches])


def pad_action(action: Tensor, size: int) -> Tensor:
    """Append zeros, (..., A) -> (..., size): both domains' models take the larger action size."""
    return F.pad(action, (0, size - action.shape[-1]))
