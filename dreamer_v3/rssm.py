"""The recurrent state-space model of DreamerV3: block-diagonal GRU, RMS norms, unimix ("World model learning").

Symbols: B sequences, T steps, N rows, S latent variables, K classes of each, D deterministic units in G blocks, U
hidden units, E embedding, A actions (padded), M members of an ensemble.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer_v3.layers import EPSILON, BlockLinear, EnsembleNorm, NormActivation, normed
from networks import State, StateSpaceModel, activation
from ops import compute_dtype, no_autocast
from ops.block_scan import BlockScan, CellState, CellWeights, Gates, PosteriorState, PosteriorWeights, cast
from ops.blocks import product
from ops.ensemble import EnsembleLinear
from ops.norm import norm_activation
from ops.recurrent import Latent, one_hot_sample
from tools import BadInput


class BlockGRU(nn.Module):
    """h_t = f(h_{t-1}, z_{t-1}, a_t), a GRU whose recurrent weights are G blocks on the diagonal.

        x   = [s(W_h h_{t-1}), s(W_z z_{t-1}), s(W_a a_t)]           s(y) = act(RMSNorm(y + bias))
        m_g = act(RMSNorm over all blocks of (R_g h_{t-1,g} + W_g x))  for each block g
        [r, c, u]_g = Q_g m_g
        h_t = (1 - sigmoid(u - 1)) h_{t-1} + sigmoid(u - 1) tanh(sigmoid(r) c)

    The rows of all W_g are one matrix, ``mix``, since x is the same for all blocks.
    """

    def __init__(self, stoch: int, action: int, deter: int, hidden: int, blocks: int, act: str):
        super().__init__()
        if deter % blocks:
            fitting = ", ".join(str(n) for n in range(1, min(deter, 16) + 1) if deter % n == 0)
            raise BadInput(f"dyn_deter {deter} is not a multiple of gru_blocks, {blocks}; give gru_blocks {fitting}")
        self.deter_in, self.stoch_in, self.action_in = (normed(size, hidden, act) for size in (deter, stoch, action))
        self.recur = BlockLinear(deter, deter, blocks, bias=False)
        self.mix = nn.Linear(3 * hidden, deter)
        self.recur.fan_in = self.mix.fan_in = deter + 3 * hidden * blocks  # together they are one layer
        self.after = NormActivation(deter, act)
        self.gates = BlockLinear(deter, 3 * deter, blocks)
        self.act, self.hidden = act, hidden

    def actions(self, action: Tensor) -> Tensor:
        """The part of ``mix`` that depends on the actions alone: (..., A) -> (..., D)."""
        return F.linear(self.action_in(action), self.mix.weight[:, 2 * self.hidden :], self.mix.bias)

    @property
    def weights(self) -> CellWeights:
        """The weights of `cell_step`."""
        inputs = [
            p for layer in (self.deter_in, self.stoch_in) for p in (layer[0].weight, layer[0].bias, layer[1].weight)
        ]
        mix = self.mix.weight[:, : 2 * self.hidden]
        return CellWeights(*inputs, mix, self.recur.weight, self.after.weight, self.gates.weight, self.gates.bias)

    def forward(self, z: Tensor, h: Tensor, given: Tensor) -> Tensor:
        """z_{t-1} (N, S * K), h_{t-1} (N, D) float32 and `actions` of a_t (N, D) -> h_t (N, D) float32."""
        dtype = compute_dtype(h.device)
        with no_autocast(h.device):
            return cell_step(cast(self.weights, dtype), self.act, EPSILON, z, h, given.to(dtype))[0]


def cell_step(w: CellWeights, act: str, eps: float, z: Tensor, h: Tensor, given: Tensor) -> tuple[Tensor, CellState]:
    """The equations of `BlockGRU`: (h_t, what their derivative needs)."""
    z, before = z.to(given.dtype), h.to(given.dtype)
    of_deter, of_stoch = product(before, w.deter), product(z, w.stoch)
    inputs = (of_deter, w.deter_bias, w.deter_norm), (of_stoch, w.stoch_bias, w.stoch_norm)
    x = torch.cat([norm_activation(y, bias, norm, eps, act) for y, bias, norm in inputs], -1)
    mixed = product(x, w.mix) + given + product(before, w.recur)
    middle = norm_activation(mixed, None, w.norm, eps, act)
    gates = (product(middle, w.gates) + w.gates_bias.to(given.dtype)).float()
    found = Gates.of(gates, len(w.gates))
    saved = CellState(z, before, of_deter, of_stoch, x, mixed, middle, gates)
    return torch.lerp(h, found.cand, found.update), saved


def posterior_step(
    cell: CellWeights, post: PosteriorWeights, act: str, eps: float, latent: Latent, given: Tensor, embedded: Tensor,
    noise: Tensor, state: tuple[Tensor, Tensor],
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:  # fmt: skip
    """h_t of `cell_step`, and z_t ~ q(z_t | h_t, e_t) with the statistics W_o act(RMSNorm(W_h h_t + W_e e_t)) + b_o.

    ``state`` is (z_{t-1}, h_{t-1}). Returns ((z_t, h_t, the statistics), what their derivative needs).
    """
    h, saved = cell_step(cell, act, eps, *state, given)
    after = h.to(given.dtype)
    of_after = product(after, post.deter) + embedded
    hidden = norm_activation(of_after, None, post.norm, eps, act)
    stat = product(hidden, post.out) + post.out_bias.to(given.dtype)
    z, sample = latent.sample(stat, noise, given.dtype)
    return (z, h, stat), (*saved, *PosteriorState(after, of_after, hidden, stat, sample))


class Prior(nn.Module):
    """Statistics of p(z_t | h_t): two hidden layers."""

    def __init__(self, deter: int, hidden: int, stats: int, act: str):
        super().__init__()
        self.layers = nn.Sequential(normed(deter, hidden, act), normed(hidden, hidden, act), nn.Linear(hidden, stats))

    def forward(self, deter: Tensor, member: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., stats)."""
        return self.layers(deter)


class EnsemblePrior(nn.Module):
    """M priors as batched products."""

    def __init__(self, deter: int, hidden: int, stats: int, act: str, members: int):
        super().__init__()
        sizes = [deter, hidden, hidden]
        self.members, self.act = members, activation(act)
        self.hidden = nn.ModuleList(EnsembleLinear(members, a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(EnsembleNorm(members, hidden) for _ in self.hidden)
        self.out = EnsembleLinear(members, hidden, stats)

    def forward(self, deter: Tensor, member: Tensor | None = None) -> Tensor:
        """One ``member``, a scalar index: (..., D) -> (..., stats). All: (M, ..., stats)."""
        x = deter if member is not None else deter.flatten(0, -2).expand(self.members, -1, -1)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = self.act(norm(layer(x, member), member))
        x = self.out(x, member)
        return x if member is not None else x.unflatten(1, deter.shape[:-1])


class BlockRSSM(StateSpaceModel):
    """DreamerV3's RSSM with a categorical or, with ``discrete`` 0, a Gaussian latent.

    Projections of embeddings and actions before the scan and the prior after it are products over all steps.
    ``unimix`` is the uniform share of a categorical latent.
    """

    def __init__(
        self, embed: int, action: int, *, stoch: int, deter: int, hidden: int, discrete: int, min_std: float, act: str,
        blocks: int, unimix: float, members: int = 0,
    ):  # fmt: skip
        super().__init__(stoch, deter, discrete, min_std)
        self.latent, self.stats = self.latent._replace(unimix=unimix), stoch * (discrete or 2)
        self.cell = BlockGRU(self.stoch_size, action, deter, hidden, blocks, act)
        self.post_embed, self.post_deter = nn.Linear(embed, hidden), nn.Linear(deter, hidden, bias=False)
        self.post_embed.fan_in = self.post_deter.fan_in = embed + deter  # together they are one layer
        self.post_after = NormActivation(hidden, act)
        self.post_out = nn.Linear(hidden, self.stats)
        self.prior_layers = self.make_prior(hidden, act, members)

    def make_prior(self, hidden: int, act: str, members: int) -> nn.Module:
        return Prior(self.deter, hidden, self.stats, act)

    def draw(self, parameters: State, noise: Tensor) -> Tensor:
        """A sample (N, S * K) for parameters and random numbers (N, S), with straight-through gradients."""
        if not self.discrete:
            return parameters["mean"] + parameters["std"] * noise
        logit, dtype = parameters["logit"], compute_dtype(noise.device)
        probs = logit.softmax(-1)
        one_hot = one_hot_sample(probs.detach(), noise, dtype)
        return (one_hot + (probs - probs.detach()).to(dtype)).flatten(-2)

    def posterior(
        self,
        embed: Tensor,
        action: Tensor,
        state: State | None = None,
        noise: Tensor | None = None,
        first: Tensor | None = None,
    ) -> State:
        state = state or self.initial(embed.shape[0])
        noise = self.noise(*embed.shape[:2]) if noise is None else noise
        action = action if first is None else action.masked_fill(first.unsqueeze(-1), 0.0)
        given, embedded, dtype = self.cell.actions(action), self.post_embed(embed), compute_dtype(embed.device)
        weights = PosteriorWeights(
            self.post_deter.weight, self.post_after.weight, self.post_out.weight, self.post_out.bias
        )
        with no_autocast(embed.device):
            stoch, deter, stat = BlockScan.apply(
                posterior_step, self.latent, self.cell.act, EPSILON, given.to(dtype), embedded.to(dtype), noise, first,
                state["stoch"], state["deter"], *cast(self.cell.weights, dtype), *cast(weights, dtype),
            )  # fmt: skip
        return {"deter": deter, "stoch": stoch, **self.latent.parameters(stat)}

    def imagine_step(
        self, state: State, action: Tensor, noise: Tensor | None = None, member: Tensor | None = None
    ) -> State:
        noise = self.noise(len(action), 1)[:, 0] if noise is None else noise
        (member,) = self.draw_members(1) if member is None else (member,)
        h = self.cell(state["stoch"], state["deter"], self.cell.actions(action))
        parameters = self.prior(h, member)
        return {"deter": h, "stoch": self.draw(parameters, noise), **parameters}

    def prior(self, deter: Tensor, member: Tensor | None = None) -> State:
        return self.latent.parameters(self.prior_layers(deter.to(compute_dtype(deter.device)), member))


class EnsembleBlockRSSM(BlockRSSM):
    """A `BlockRSSM` whose prior is an ensemble of ``members``. An imagined step uses one of them."""

    def __init__(self, embed: int, action: int, **sizes: Any):
        super().__init__(embed, action, **sizes)
        self.members = sizes["members"]

    def make_prior(self, hidden: int, act: str, members: int) -> nn.Module:
        return EnsemblePrior(self.deter, hidden, self.stats, act, members)

    def draw_members(self, steps: int) -> tuple[Tensor, ...]:
        """A scalar index for each step, for all start states."""
        return torch.randint(self.members, (steps,), device=self.cell.gates.weight.device).unbind(0)
