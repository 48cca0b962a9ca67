"""The scan of a recurrent state-space model and its backward pass, with one product for each weight's gradient.

Autograd adds a weight's gradient at every step; here the inputs and output gradients of all steps are kept and give one
product at the end. A step's equations are `networks.recurrent_step`; `step_backward` is its derivative.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ops import compute_dtype, no_autocast

aten = torch.ops.aten

# Activations -----------------------------------------------------------------------------------------------------


class Activation(NamedTuple):
    """An activation and its derivative, from its result alone if ``by_result``, else from its input."""

    function: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]  # (output's gradient, result or input) -> input's gradient
    by_result: bool = True


ACTIVATIONS = {
    "ELU": Activation(F.elu, lambda g, y: aten.elu_backward(g, 1.0, 1.0, 1.0, True, y)),
    "ReLU": Activation(F.relu, lambda g, y: aten.threshold_backward(g, y, 0.0)),
    "Tanh": Activation(torch.tanh, aten.tanh_backward),
    "SiLU": Activation(F.silu, aten.silu_backward, by_result=False),
    "GELU": Activation(F.gelu, aten.gelu_backward, by_result=False),
}


def mix_uniform(logit: Tensor, share: float) -> Tensor:
    """Logits (..., K) of ``share`` uniform and the rest softmax(``logit``)."""
    return ((1 - share) * logit.softmax(-1) + share / logit.shape[-1]).log() if share else logit


def one_hot_sample(probs: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
    """One-hot samples (..., K) of probabilities (..., K): the inverse of the cumulative distribution at ``noise``."""
    # A sum of float32 probabilities may end below 1, and a uniform number may lie above it.
    index = (probs.cumsum(-1) <= noise.unsqueeze(-1)).sum(-1, keepdim=True).clamp(max=probs.shape[-1] - 1)
    return torch.zeros_like(probs, dtype=dtype).scatter_(-1, index, 1.0)


# The latent's sample ---------------------------------------------------------------------------------------------


class Latent(NamedTuple):
    """The latent of an RSSM: S variables with K classes each, or Gaussian ones if ``discrete`` is 0.

    ``unimix`` is DreamerV3's share of the uniform distribution in a categorical latent.
    """

    stoch: int
    discrete: int
    min_std: float
    unimix: float = 0.0

    def parameters(self, stat: Tensor) -> dict[str, Tensor]:
        """A layer's output (..., stats) to float32 parameters: logit (..., S, K), or mean and std (..., S)."""
        stat = stat.float()
        if self.discrete:
            return {"logit": mix_uniform(stat.unflatten(-1, (self.stoch, self.discrete)), self.unimix)}
        mean, std = stat.chunk(2, -1)
        return {"mean": mean, "std": 2 * torch.sigmoid(std / 2) + self.min_std}

    def sample(self, stat: Tensor, noise: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A sample (N, S * K) for ``stat`` (N, stats), and what `sample_backward` needs.

        Categorical: one uniform number (N, S) selects the class by the inverse of the cumulative distribution. The
        one-hot is exact in every ``dtype``. Gaussian: mean + std times a normal number (N, S), in float32.
        """
        if not self.discrete:
            parameters = self.parameters(stat)
            return parameters["mean"] + parameters["std"] * noise, parameters["std"]
        own = stat.float().unflatten(-1, (self.stoch, self.discrete)).softmax(-1)
        probs = (1 - self.unimix) * own + self.unimix / self.discrete if self.unimix else own
        return one_hot_sample(probs, noise, dtype).flatten(-2), own

    def sample_backward(self, gradient: Tensor, saved: Tensor, noise: Tensor) -> Tensor:
        """The gradient (N, stats) for the sample's gradient (N, S * K); straight-through for a categorical latent."""
        gradient = gradient.float()
        if self.discrete:
            gradient = gradient.view(saved.shape)
            gradient = (1 - self.unimix) * gradient if self.unimix else gradient
            return aten._softmax_backward_data(gradient, saved, -1, torch.float32).flatten(-2)
        half = (saved - self.min_std) / 2  # the sigmoid
        return torch.cat([gradient, gradient * noise * half * (1 - half)], -1)


# The step's derivative ----------------------------------------------------------------------------------------------


class StepWeights(NamedTuple):
    """Weights of a step: GRU input from stoch, the GRU with its layer norm, and the layers that give the latent."""

    stoch_in: Tensor  # (X, S * K)
    gates: Tensor  # (3 D, X + D)
    norm_weight: Tensor  # (3 D,)
    norm_bias: Tensor  # (3 D,)
    hidden: Tensor  # (U, D)
    out: Tensor  # (stats, U)
    out_bias: Tensor  # (stats,)

    def to(self, dtype: torch.dtype) -> "StepWeights":
        """The products' weights in ``dtype``; the layer norm stays in float32."""
        return StepWeights(
            *(w if n.startswith("norm") else w.to(dtype) for n, w in zip(self._fields, self, strict=True))
        )


class StepState(NamedTuple):
    """What `step_backward` needs of one step; X units enter the GRU, U units give the latent."""

    stoch: Tensor  # (N, S * K), the step's input
    deter: Tensor  # (N, D), the step's input
    act_in: Tensor  # (N, X), result or input of the activation
    gru_in: Tensor  # (N, X + D)
    gates: Tensor  # (N, 3 D)
    mean: Tensor  # (N, 1), of the layer norm
    rstd: Tensor  # (N, 1)
    reset: Tensor  # (N, D)
    raw: Tensor  # (N, D), the candidate before its reset gate
    cand: Tensor  # (N, D)
    update: Tensor  # (N, D)
    deter_out: Tensor  # (N, D), in the products' dtype
    hidden_in: Tensor  # (N, U), result or input of the activation
    hidden: Tensor  # (N, U)
    sample: Tensor
    noise: Tensor


# (weights, latent, activation, added (N, X), given (N, U) or (U,), noise, (z, h)) -> ((z', h', stat), saved tensors)
Step = Callable[..., tuple[tuple[Tensor, Tensor, Tensor], StepState]]


class StepGradients(NamedTuple):
    """Gradients of one step's activations, from which those of the weights follow."""

    added: Tensor  # (N, X)
    normed: Tensor  # (N, 3 D), of the layer norm's output
    gates: Tensor  # (N, 3 D)
    hidden: Tensor  # (N, U)
    stat: Tensor  # (N, stats)


def step_backward(
    w: StepWeights,
    latent: Latent,
    act: Activation,
    s: StepState,
    stoch: Tensor | None,
    deter: Tensor | None,
    stat: Tensor | None,
) -> tuple[tuple[Tensor, Tensor], StepGradients]:
    """From the gradients of z', h' and stat, None if zero: ((those of z and h), those of the activations)."""
    dtype = w.gates.dtype
    sampled = None if stoch is None else latent.sample_backward(stoch, s.sample, s.noise)
    stat = plus(sampled, stat)
    stat = w.out.new_zeros(len(s.deter), len(w.out)) if stat is None else stat.to(dtype)
    hidden = act.gradient(stat @ w.out, s.hidden_in)
    deter = plus((hidden @ w.hidden).float(), deter)
    cand = aten.tanh_backward(deter * s.update, s.cand)
    update = aten.sigmoid_backward(deter * (s.cand - s.deter), s.update)
    normed = torch.cat([aten.sigmoid_backward(cand * s.raw, s.reset), cand * s.reset, update], -1)
    shape = list(w.norm_weight.shape)
    arguments = (s.gates, shape, s.mean, s.rstd, w.norm_weight, w.norm_bias, [True, False, False])
    gates = aten.native_layer_norm_backward(normed, *arguments)[0].to(dtype)
    x, through = (gates @ w.gates).split([s.act_in.shape[-1], deter.shape[-1]], -1)
    added = act.gradient(x, s.act_in)
    before = torch.addcmul(through.float(), deter, 1 - s.update)
    return (added @ w.stoch_in, before), StepGradients(added, normed, gates, hidden, stat)


def weight_gradients(w: StepWeights, states: Sequence[StepState], grads: Sequence[StepGradients]) -> StepWeights:
    """The gradients of the weights: one product each over the rows of all steps."""
    s = StepState(*(torch.cat(x) if i in CONCATENATED else None for i, x in enumerate(zip(*states, strict=True))))
    g = StepGradients(*map(torch.cat, zip(*grads, strict=True)))
    arguments = (s.gates, list(w.norm_weight.shape), s.mean, s.rstd, w.norm_weight, w.norm_bias, [False, True, True])
    _, norm_weight, norm_bias = aten.native_layer_norm_backward(g.normed, *arguments)
    return StepWeights(
        g.added.t() @ s.stoch,
        g.gates.t() @ s.gru_in,
        norm_weight,
        norm_bias,
        g.hidden.t() @ s.deter_out,
        g.stat.t() @ s.hidden,
        g.stat.sum(0),
    )


CONCATENATED = [StepState._fields.index(name) for name in "stoch gru_in gates mean rstd deter_out hidden".split()]


class Scan(torch.autograd.Function):
    """``step`` for every column of ``added`` (B, T, X), ``given`` (B, T, U) or (U,), and ``noise`` (B, T, ...).

    Where ``first`` (B, T) is true, the state before the step is zero, and no gradient reaches earlier steps. It may be
    None. Returns stoch (B, T, S * K), deter (B, T, D) and stat (B, T, stats).
    """

    @staticmethod
    def forward(
        ctx: Any, step: Step, latent: Latent, act: Activation, added: Tensor, given: Tensor, noise: Tensor,
        first: Tensor | None, stoch: Tensor, deter: Tensor, *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        w, state, outputs, states = StepWeights(*weights), (stoch, deter), [], []
        for t in range(added.shape[1]):
            e = given if given.dim() == 1 else given[:, t]
            state = zero_where(first, t, state)
            output, saved = step(w, latent, act, added[:, t], e, noise[:, t], state)
            state = output[:2]
            outputs.append(output)
            if any(ctx.needs_input_grad):
                states.append(saved)
        ctx.latent, ctx.act, ctx.given_dim, ctx.stoch_dtype = latent, act, given.dim(), stoch.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(first, *weights, *(tensor for saved in states for tensor in saved))
        return tuple(stack(column) for column in zip(*outputs, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        (first, *saved), count, size = ctx.saved_tensors, len(StepWeights._fields), len(StepState._fields)
        w = StepWeights(*saved[:count])
        states = [StepState(*saved[i : i + size]) for i in range(count, len(saved), size)]
        grads: list[StepGradients] = []
        before: tuple[Tensor | None, Tensor | None] = (None, None)
        for t in reversed(range(len(states))):
            stoch, deter, stat = (None if x is None else x[:, t] for x in outputs)
            after = plus(before[0], stoch), plus(before[1], deter), stat
            before, found = step_backward(w, ctx.latent, ctx.act, states[t], *after)
            before = zero_where(first, t, before)
            grads.insert(0, found)
        added, hidden = (stack([getattr(g, name) for g in grads]) for name in ("added", "hidden"))
        given = hidden if ctx.given_dim > 1 else hidden.sum((0, 1))
        weights = weight_gradients(w, states, grads) if any(ctx.needs_input_grad[9:]) else [None] * count
        return None, None, None, added, given, None, None, before[0].to(ctx.stoch_dtype), before[1], *weights


def stack(steps: Sequence[Tensor]) -> Tensor:
    """T tensors (B, ...) as one (B, T, ...), without a copy if T is 1."""
    return torch.stack(tuple(steps), 1) if len(steps) > 1 else steps[0].unsqueeze(1)


def zero_where(first: Tensor | None, t: int, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """z and h (B, ...), or their gradients, with zeros in the sequences whose step t is ``first`` (B, T)."""
    return state if first is None else tuple(x.masked_fill(first[:, t, None], 0.0) for x in state)


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two gradients; None is zero."""
    return a if b is None else b if a is None else a + b


def scan(
    step: Step,
    w: StepWeights,
    latent: Latent,
    act: Activation,
    added: Tensor,
    given: Tensor,
    noise: Tensor,
    state: tuple[Tensor, Tensor],
    first: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`Scan` with products in `compute_dtype`; ``state`` is (z, h)."""
    dtype = compute_dtype(added.device)
    with no_autocast(added.device):
        return Scan.apply(step, latent, act, added.to(dtype), given.to(dtype), noise, first, *state, *w.to(dtype))
