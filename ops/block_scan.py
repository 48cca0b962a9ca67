"""The scan of DreamerV3's recurrent state-space model and its backward pass, as `ops.recurrent` has DreamerV2's.

A step's equations are `dreamer_v3.rssm.cell_step` and `posterior_step`. What their derivatives need elementwise is
computed for all steps at once; only products and what depends on the step after are computed step by step.

Symbols: N rows, S latent variables of K classes, D deterministic units in G blocks, U hidden units.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ops.blocks import input_gradient, weight_gradient
from ops.norm import Normed, shifted
from ops.recurrent import ACTIVATIONS, Activation, Latent, plus, stack, zero_where

aten = torch.ops.aten


class CellWeights(NamedTuple):
    """Weights of the GRU: inputs from h and z with their norms, ``mix`` of both, the blocks of h, and the gates."""

    deter: Tensor  # (U, D)
    deter_bias: Tensor  # (U,)
    deter_norm: Tensor  # (U,)
    stoch: Tensor  # (U, S * K)
    stoch_bias: Tensor  # (U,)
    stoch_norm: Tensor  # (U,)
    mix: Tensor  # (D, 2 U)
    recur: Tensor  # (G, D / G, D / G)
    norm: Tensor  # (D,)
    gates: Tensor  # (G, D / G, 3 D / G)
    gates_bias: Tensor  # (3 D,)


class PosteriorWeights(NamedTuple):
    """Weights of the layers that give the latent's statistics from h_t and the embedding."""

    deter: Tensor  # (U, D)
    norm: Tensor  # (U,)
    out: Tensor  # (stats, U)
    out_bias: Tensor  # (stats,)


def cast(weights: NamedTuple, dtype: torch.dtype) -> NamedTuple:
    """The products' weights in ``dtype``; those of norms and biases stay as they are."""
    return type(weights)(*(w if w.dim() == 1 else w.to(dtype) for w in weights))


class CellState(NamedTuple):
    """What the derivative of a step of the GRU needs."""

    stoch: Tensor  # (N, S * K), the step's input
    before: Tensor  # (N, D), the step's input, in the products' dtype
    of_deter: Tensor  # (N, U), before its norm
    of_stoch: Tensor  # (N, U), before its norm
    x: Tensor  # (N, 2 U)
    mixed: Tensor  # (N, D), before its norm
    middle: Tensor  # (N, D)
    gates: Tensor  # (N, 3 D), float32


class PosteriorState(NamedTuple):
    """What the derivative of a step's latent needs."""

    after: Tensor  # (N, D), h_t in the products' dtype
    of_after: Tensor  # (N, U), before its norm
    hidden: Tensor  # (N, U)
    stat: Tensor  # (N, stats)
    sample: Tensor  # of `Latent.sample`


class Gates(NamedTuple):
    """The gates of rows: r, c before r, u, and tanh(r c), (N, D) each."""

    reset: Tensor
    raw: Tensor
    update: Tensor
    cand: Tensor

    @staticmethod
    def of(gates: Tensor, blocks: int) -> "Gates":
        """Of the gates' layer (N, 3 D), which has reset, candidate and update in each block."""
        reset, raw, update = (g.flatten(1) for g in gates.unflatten(-1, (blocks, 3, -1)).unbind(2))
        reset = torch.sigmoid(reset)
        return Gates(reset, raw, torch.sigmoid(update - 1), torch.tanh(reset * raw))

    def gradients(self, deter: Tensor, change: Tensor, blocks: int) -> Tensor:
        """The gradient of the gates' layer (N, 3 D) for that of h_t; ``change`` (N, D) is tanh(r c) - h_{t-1}."""
        cand = aten.tanh_backward(deter * self.update, self.cand)
        update = aten.sigmoid_backward(deter * change, self.update)
        reset = aten.sigmoid_backward(cand * self.raw, self.reset)
        parts = [g.unflatten(-1, (blocks, -1)) for g in (reset, cand * self.reset, update)]
        return torch.stack(parts, 2).flatten(1)


class NormSteps:
    """The derivative of a norm and its activation, for the T steps of a scan."""

    def __init__(self, steps: Sequence[Tensor], bias: Tensor | None, weight: Tensor, eps: float, act: Activation):
        rows = Normed.of(shifted(torch.cat(tuple(steps)), bias), None, weight, eps, act)
        self.steps = [Normed(*step) for step in zip(*(x.chunk(len(steps)) for x in rows), strict=True)]
        self.weight, self.act, self.products = weight, act, []

    def __call__(self, t: int, gradient: Tensor) -> Tensor:
        """The gradient of step t's input, in the dtype of the ``gradient`` of its result."""
        found, product = self.steps[t].gradients(gradient, self.weight, self.act)
        self.products.append(product)
        return found.to(gradient.dtype)

    def weight_gradient(self) -> Tensor:
        return torch.stack(self.products).sum((0, 1))


class Backward:
    """The backward pass of `BlockScan`, from its last step to its first."""

    def __init__(
        self, latent: Latent, act: str, eps: float, cell: CellWeights, post: PosteriorWeights,
        cells: list[CellState], posts: list[PosteriorState], deters: list[Tensor], noise: Tensor,
    ):  # fmt: skip
        self.latent, self.cell, self.post, self.cells, self.posts, self.noise = latent, cell, post, cells, posts, noise
        norm = {"eps": eps, "act": ACTIVATIONS[act]}
        self.of_deter = NormSteps([s.of_deter for s in cells], cell.deter_bias, cell.deter_norm, **norm)
        self.of_stoch = NormSteps([s.of_stoch for s in cells], cell.stoch_bias, cell.stoch_norm, **norm)
        self.mixed = NormSteps([s.mixed for s in cells], None, cell.norm, **norm)
        self.of_after = NormSteps([s.of_after for s in posts], None, post.norm, **norm)
        gates = Gates.of(torch.cat([s.gates for s in cells]), len(cell.gates))
        changes = (gates.cand - torch.cat(deters)).chunk(len(cells))
        kept = 1 - gates.update
        self.gates = [Gates(*step) for step in zip(*(x.chunk(len(cells)) for x in gates), strict=True)]
        self.changes, self.kept = changes, kept.chunk(len(cells))
        self.rows: list[tuple[Tensor, ...]] = []

    def step(self, t: int, stoch: Tensor | None, deter: Tensor | None, stat: Tensor | None) -> tuple[Tensor, Tensor]:
        """From the gradients of z_t, h_t and the statistics, None if zero: those of z_{t-1} and h_{t-1}."""
        cell, post, dtype, blocks = self.cell, self.post, self.cell.mix.dtype, len(self.cell.gates)
        sampled = None if stoch is None else self.latent.sample_backward(stoch, self.posts[t].sample, self.noise[:, t])
        stat = plus(sampled, stat)
        stat = torch.zeros_like(self.posts[t].stat, dtype=dtype) if stat is None else stat.to(dtype)
        hidden = self.of_after(t, stat @ post.out)
        deter = plus((hidden @ post.deter).float(), deter)
        gates = self.gates[t].gradients(deter, self.changes[t], blocks).to(dtype)
        mixed = self.mixed(t, input_gradient(gates, cell.gates))
        of_deter, of_stoch = (mixed @ cell.mix).chunk(2, -1)
        of_deter, of_stoch = self.of_deter(t, of_deter), self.of_stoch(t, of_stoch)
        through = of_deter @ cell.deter + input_gradient(mixed, cell.recur)
        self.rows.append((of_deter, of_stoch, mixed, gates, hidden, stat))
        return of_stoch @ cell.stoch, torch.addcmul(through.float(), deter, self.kept[t])

    def inputs(self) -> tuple[Tensor, Tensor]:
        """The gradients of what is given for each step: to ``mixed`` (B, T, D), and the embeddings (B, T, U)."""
        return tuple(stack([row[i] for row in self.rows[::-1]]) for i in (2, 4))

    def weights(self) -> tuple[Tensor, ...]:
        """The gradients of all weights: one product each over the rows of all steps."""
        cell = self.cell
        of_deter, of_stoch, mixed, gates, hidden, stat = map(torch.cat, zip(*self.rows[::-1], strict=True))
        s = CellState(*map(torch.cat, zip(*self.cells, strict=True)))
        after, states = (torch.cat([getattr(p, name) for p in self.posts]) for name in ("after", "hidden"))
        found = CellWeights(
            weight_gradient(of_deter, s.before, cell.deter), of_deter.sum(0), self.of_deter.weight_gradient(),
            weight_gradient(of_stoch, s.stoch, cell.stoch), of_stoch.sum(0), self.of_stoch.weight_gradient(),
            weight_gradient(mixed, s.x, cell.mix), weight_gradient(mixed, s.before, cell.recur),
            self.mixed.weight_gradient(), weight_gradient(gates, s.middle, cell.gates), gates.sum(0),
        )  # fmt: skip
        return *found, hidden.t() @ after, self.of_after.weight_gradient(), stat.t() @ states, stat.sum(0)


class BlockScan(torch.autograd.Function):
    """``step`` for every column of ``given`` (B, T, D), ``embedded`` (B, T, U) and ``noise`` (B, T, S).

    Where ``first`` (B, T) is true, the state before the step is zero, and no gradient reaches earlier steps. It may be
    None. Returns stoch (B, T, S * K), deter (B, T, D) and stat (B, T, stats).
    """

    @staticmethod
    def forward(
        ctx: Any, step: Callable[..., Any], latent: Latent, act: str, eps: float, given: Tensor, embedded: Tensor,
        noise: Tensor, first: Tensor | None, stoch: Tensor, deter: Tensor, *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        count = len(CellWeights._fields)
        cell, post = CellWeights(*weights[:count]), PosteriorWeights(*weights[count:])
        state, outputs, kept = (stoch, deter), [], []
        for t in range(given.shape[1]):
            state = zero_where(first, t, state)
            output, saved = step(cell, post, act, eps, latent, given[:, t], embedded[:, t], noise[:, t], state)
            if any(ctx.needs_input_grad):
                kept += [state[1], *saved]
            state = output[:2]
            outputs.append(output)
        ctx.latent, ctx.act, ctx.eps, ctx.stoch_dtype = latent, act, eps, stoch.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(noise, first, *weights, *kept)
        return tuple(stack(column) for column in zip(*outputs, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        noise, first, *saved = ctx.saved_tensors
        sizes = [len(kind._fields) for kind in (CellWeights, PosteriorWeights, CellState, PosteriorState)]
        cell, post = CellWeights(*saved[: sizes[0]]), PosteriorWeights(*saved[sizes[0] : sizes[0] + sizes[1]])
        rows, size = saved[sizes[0] + sizes[1] :], 1 + sizes[2] + sizes[3]
        steps = [rows[i : i + size] for i in range(0, len(rows), size)]
        cells = [CellState(*s[1 : 1 + sizes[2]]) for s in steps]
        posts = [PosteriorState(*s[1 + sizes[2] :]) for s in steps]
        passed = Backward(ctx.latent, ctx.act, ctx.eps, cell, post, cells, posts, [s[0] for s in steps], noise)
        before: tuple[Tensor | None, Tensor | None] = (None, None)
        for t in reversed(range(len(steps))):
            stoch, deter, stat = (None if x is None else x[:, t] for x in outputs)
            before = passed.step(t, plus(before[0], stoch), plus(before[1], deter), stat)
            before = zero_where(first, t, before)
        given, embedded = passed.inputs()
        weights = passed.weights() if any(ctx.needs_input_grad[10:]) else [None] * (sizes[0] + sizes[1])
        return None, None, None, None, given, embedded, None, None, before[0].to(ctx.stoch_dtype), before[1], *weights
