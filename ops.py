"""Autograd functions with backward passes of our own, where torch's cost much of an update's time on a CPU.

A scan adds a weight gradient at every step; here all steps' inputs and output gradients give one product at the end.
Its forward and backward passes are the functions `step` and `step_backward`, without autograd inside.
tests/test_ops.py compares each function with plain torch operations.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype of matrix products here: autocast's if it is on, else float32."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.float32


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Switches autocast off, on devices that have it."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


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


# The latent's sample ---------------------------------------------------------------------------------------------


class Latent(NamedTuple):
    """The latent of an RSSM: S variables with K classes each, or Gaussian ones if ``discrete`` is 0."""

    stoch: int
    discrete: int
    min_std: float

    def parameters(self, stat: Tensor) -> dict[str, Tensor]:
        """A layer's output (..., stats) to float32 parameters: logit (..., S, K), or mean and std (..., S)."""
        stat = stat.float()
        if self.discrete:
            return {"logit": stat.unflatten(-1, (self.stoch, self.discrete))}
        mean, std = stat.chunk(2, -1)
        return {"mean": mean, "std": 2 * torch.sigmoid(std / 2) + self.min_std}

    def sample(self, stat: Tensor, noise: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A sample (N, S * K) for ``stat`` (N, stats), and what `sample_backward` needs.

        Categorical: one uniform number (N, S) selects the class by the inverse of the cumulative distribution. The
        one-hot is exact in every ``dtype``. Gaussian: mean + std times a normal number (N, S), in float32.
        """
        parameters = self.parameters(stat)
        if not self.discrete:
            return parameters["mean"] + parameters["std"] * noise, parameters["std"]
        probs = parameters["logit"].softmax(-1)
        # A sum of float32 probabilities may end below 1, and a uniform number may lie above it.
        index = (probs.cumsum(-1) <= noise.unsqueeze(-1)).sum(-1, keepdim=True).clamp(max=self.discrete - 1)
        one_hot = torch.zeros_like(probs, dtype=dtype).scatter_(-1, index, 1.0)
        return one_hot.flatten(-2), probs

    def sample_backward(self, gradient: Tensor, saved: Tensor, noise: Tensor) -> Tensor:
        """The gradient (N, stats) for the sample's gradient (N, S * K); straight-through for a categorical latent."""
        gradient = gradient.float()
        if self.discrete:
            gradient = gradient.view(saved.shape)
            return aten._softmax_backward_data(gradient, saved, -1, torch.float32).flatten(-2)
        half = (saved - self.min_std) / 2  # the sigmoid
        return torch.cat([gradient, gradient * noise * half * (1 - half)], -1)


# The recurrent step ----------------------------------------------------------------------------------------------


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


class StepGradients(NamedTuple):
    """Gradients of one step's activations, from which those of the weights follow."""

    added: Tensor  # (N, X)
    normed: Tensor  # (N, 3 D), of the layer norm's output
    gates: Tensor  # (N, 3 D)
    hidden: Tensor  # (N, U)
    stat: Tensor  # (N, stats)


def step(
    w: StepWeights, latent: Latent, act: Activation, added: Tensor, given: Tensor, noise: Tensor, state: tuple
) -> tuple[tuple[Tensor, Tensor, Tensor], StepState]:
    """h' = GRU(act(added + W z), h), stat = out(act(given + W h')), z' a sample: ((z', h', stat), saved tensors).

    added (N, X), given (N, U) or (U,); state is (z, h).
    """
    stoch, deter = state
    dtype = w.gates.dtype
    stoch = stoch.to(dtype)
    x_in = torch.addmm(added, stoch, w.stoch_in.t())
    x = act.function(x_in)
    gru_in = torch.cat([x, deter.to(dtype)], -1)
    gates = (gru_in @ w.gates.t()).float()
    normed, mean, rstd = torch.native_layer_norm(gates, w.norm_weight.shape, w.norm_weight, w.norm_bias, 1e-5)
    reset, raw, update = normed.chunk(3, -1)
    reset, update = torch.sigmoid(reset), torch.sigmoid(update - 1)
    cand = torch.tanh(reset * raw)
    after = torch.lerp(deter, cand, update)
    deter_out = after.to(dtype)
    hidden_in = torch.addmm(given, deter_out, w.hidden.t())
    hidden = act.function(hidden_in)
    stat = torch.addmm(w.out_bias, hidden, w.out.t()).float()
    sample, saved = latent.sample(stat, noise, dtype)
    kept = (x, hidden) if act.by_result else (x_in, hidden_in)
    gru = (gru_in, gates, mean, rstd, reset, raw, cand, update)
    return (sample, after, stat), StepState(stoch, deter, kept[0], *gru, deter_out, kept[1], hidden, saved, noise)


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
    """`step` for every column of ``added`` (B, T, X), ``given`` (B, T, U) or (U,), and ``noise`` (B, T, ...).

    Returns stoch (B, T, S * K), deter (B, T, D) and stat (B, T, stats).
    """

    @staticmethod
    def forward(
        ctx: Any, latent: Latent, act: Activation, added: Tensor, given: Tensor, noise: Tensor, stoch: Tensor,
        deter: Tensor, *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        w, state, outputs, states = StepWeights(*weights), (stoch, deter), [], []
        for t in range(added.shape[1]):
            e = given if given.dim() == 1 else given[:, t]
            output, saved = step(w, latent, act, added[:, t], e, noise[:, t], state)
            state = output[:2]
            outputs.append(output)
            if any(ctx.needs_input_grad):
                states.append(saved)
        ctx.latent, ctx.act, ctx.given_dim, ctx.stoch_dtype = latent, act, given.dim(), stoch.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*weights, *(tensor for saved in states for tensor in saved))
        return tuple(stack(column) for column in zip(*outputs, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, count, size = ctx.saved_tensors, len(StepWeights._fields), len(StepState._fields)
        w = StepWeights(*saved[:count])
        states = [StepState(*saved[i : i + size]) for i in range(count, len(saved), size)]
        grads: list[StepGradients] = []
        before: tuple[Tensor | None, Tensor | None] = (None, None)
        for t in reversed(range(len(states))):
            stoch, deter, stat = (None if x is None else x[:, t] for x in outputs)
            after = plus(before[0], stoch), plus(before[1], deter), stat
            before, found = step_backward(w, ctx.latent, ctx.act, states[t], *after)
            grads.insert(0, found)
        added, hidden = (stack([getattr(g, name) for g in grads]) for name in ("added", "hidden"))
        given = hidden if ctx.given_dim > 1 else hidden.sum((0, 1))
        weights = weight_gradients(w, states, grads) if any(ctx.needs_input_grad[7:]) else [None] * count
        return None, None, added, given, None, before[0].to(ctx.stoch_dtype), before[1], *weights


def stack(steps: Sequence[Tensor]) -> Tensor:
    """T tensors (B, ...) as one (B, T, ...), without a copy if T is 1."""
    return torch.stack(tuple(steps), 1) if len(steps) > 1 else steps[0].unsqueeze(1)


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two gradients; None is zero."""
    return a if b is None else b if a is None else a + b


def scan(
    w: StepWeights,
    latent: Latent,
    act: Activation,
    added: Tensor,
    given: Tensor,
    noise: Tensor,
    state: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """`Scan` with products in `compute_dtype`; ``state`` is (z, h)."""
    dtype = compute_dtype(added.device)
    with no_autocast(added.device):
        return Scan.apply(latent, act, added.to(dtype), given.to(dtype), noise, *state, *w.to(dtype))


# Convolutions ----------------------------------------------------------------------------------------------------


def windows(x: Tensor, kernel: int, out: int) -> Tensor:
    """What each output of a stride-2 convolution sees: x (N, H, W, C) -> (N * out * out, kernel * kernel * C)."""
    views = x.unfold(1, kernel, 2).unfold(2, kernel, 2)  # (N, out, out, C, kernel, kernel)
    return views.permute(0, 1, 2, 4, 5, 3).reshape(len(x) * out * out, -1)


class ProductConv(torch.autograd.Function):
    """A convolution of stride 2 as a product over `windows`: faster where the output is a few pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x (N, C, H, H), weight (O, C, k, k), bias (O,) -> (N * out * out, O)."""
        kernel, side = weight.shape[-1], x.shape[-1]
        out = (side - kernel) // 2 + 1
        columns, matrix = windows(x.permute(0, 2, 3, 1), kernel, out), weight.permute(0, 2, 3, 1).flatten(1)
        ctx.save_for_backward(columns, matrix)
        ctx.sizes = x.shape, kernel, out
        return torch.addmm(bias, columns, matrix.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (columns, matrix), ((n, channels, height, width), kernel, out) = ctx.saved_tensors, ctx.sizes
        weight = (gradient.t() @ columns).view(-1, kernel, kernel, channels).permute(0, 3, 1, 2)
        x = None
        if ctx.needs_input_grad[0]:
            x = gradient.new_zeros(n, height, width, channels)
            parts = (gradient @ matrix).view(n, out, out, kernel, kernel, channels)
            for i in range(out):
                for j in range(out):
                    x[:, 2 * i : 2 * i + kernel, 2 * j : 2 * j + kernel] += parts[:, i, j]
            x = x.permute(0, 3, 1, 2)
        return x, weight, gradient.sum(0)


def subpixel_kernel(weight: Tensor) -> Tensor:
    """The kernel (4 O, C, q, q) of the convolution that gives all four pixels (i, j) of a transposed one of stride 2.

    weight (C, O, k, k) -> 4 O channels in the order (i, j, O), where q is k / 2, rounded up.
    """
    channels, out, kernel, _ = weight.shape
    weight = F.pad(weight, (0, kernel % 2, 0, kernel % 2))
    q = weight.shape[-1] // 2
    parts = weight.reshape(channels, out, q, 2, q, 2).flip(2, 4).permute(3, 5, 1, 0, 2, 4)
    return parts.reshape(4 * out, channels, q, q).contiguous(memory_format=torch.channels_last)


class SubpixelConvTranspose(torch.autograd.Function):
    """A transposed convolution of stride 2 to few channels: forward as `subpixel_kernel`'s convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x (N, C, H, H), weight (C, O, k, k), bias (O,) -> (N, 2 H + k - 2, 2 H + k - 2, O)."""
        ctx.save_for_backward(x, weight)
        kernel, n, out = subpixel_kernel(weight), len(x), weight.shape[1]
        y = F.conv2d(x, kernel, bias.repeat(4), padding=kernel.shape[-1] - 1).permute(0, 2, 3, 1)
        side, size = y.shape[1], 2 * x.shape[-1] + weight.shape[-1] - 2
        y = y.reshape(n, side, side, 2, 2, out).permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * side, 2 * side, out)
        return y if size == 2 * side else y[:, :size, :size].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient.permute(0, 3, 1, 2)
        arguments = [2, 2], [0, 0], [1, 1], True, [0, 0], 1, [True, True, False]
        dx, dweight, _ = aten.convolution_backward(gradient, x, weight, None, *arguments)
        return dx, dweight, gradient.sum((0, 2, 3))


def conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution of stride 2, (N, C, H, W) -> (N, O, out, out), on a CPU by the fastest of its forms."""
    out = (x.shape[-1] - weight.shape[-1]) // 2 + 1
    if x.device.type != "cpu" or out > 2:
        return F.conv2d(x, weight, bias, stride=2)
    dtype = compute_dtype(x.device)
    with no_autocast(x.device):
        rows = ProductConv.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))
        return rows.view(len(x), out, out, -1).permute(0, 3, 1, 2)


def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A transposed convolution of stride 2, (N, C, H, H) -> (N, O, out, out), on a CPU by the fastest of its forms."""
    if x.device.type != "cpu":
        return F.conv_transpose2d(x, weight, bias, stride=2)
    dtype = compute_dtype(x.device)
    with no_autocast(x.device):
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        if weight.shape[1] <= 4:
            return SubpixelConvTranspose.apply(x, weight, bias).permute(0, 3, 1, 2)
        # With its bias inside, oneDNN's takes up to five times as long.
        return F.conv_transpose2d(x, weight, stride=2) + bias.view(-1, 1, 1)
