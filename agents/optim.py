"""Optimisation: clipped AdamW, gradients in micro-batches, and frozen views of modules."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from config import Config
from dreamer_v3.laprop import LaProp, clip_adaptively

Tree = Any  # tensors in dicts, lists and tuples; other leaves are passed on as they are


class Anchor(Protocol):
    """Adds the gradient of a penalty on the parameters, such as `baselines.ElasticWeights`."""

    def add_gradient(self, parameters: Iterable[Tensor]) -> None: ...


class Optimizer:
    """AdamW with a clipped gradient norm, over the parameters of the given modules and no others."""

    def __init__(self, modules: Iterable[nn.Module], lr: float, config: Config):
        self.parameters = [p for module in modules for p in module.parameters()]
        self.clip = config.grad_clip
        self.anchor: Anchor | None = None
        self.adam = self.make_rule(lr, config)

    def make_rule(self, lr: float, config: Config) -> torch.optim.Optimizer:
        fused = all(p.device.type in ("cpu", "cuda") for p in self.parameters)
        return torch.optim.AdamW(self.parameters, lr, eps=config.opt_eps, weight_decay=config.weight_decay, fused=fused)

    def step(self) -> Tensor:
        """One update with the gradients that the parameters have, which are then removed.

        Returns the gradient norm before clipping, a scalar. An ``anchor`` adds its gradient first.
        """
        if self.anchor is not None:
            self.anchor.add_gradient(self.parameters)
        norm = self.clip_gradients()
        self.adam.step()
        self.zero_grad()
        return norm

    def clip_gradients(self) -> Tensor:
        """Clip the gradients. Returns their norm before it, a scalar."""
        return nn.utils.clip_grad_norm_(self.parameters, self.clip)

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return self.adam.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restore the moments in the memory layout of their parameters, which the fused kernel needs."""
        self.adam.load_state_dict(state)
        for parameter, moments in self.adam.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = torch.empty_like(parameter).copy_(moments[name]).detach()


class LaPropOptimizer(Optimizer):
    """DreamerV3's: LaProp with a warm-up; each parameter's gradient is clipped by the parameter's norm."""

    def make_rule(self, lr: float, config: Config) -> torch.optim.Optimizer:
        self.clip = config.agc
        return LaProp(self.parameters, lr, config.opt_eps, config.lr_warmup, config.weight_decay)

    def clip_gradients(self) -> Tensor:
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        clip_adaptively(self.parameters, self.clip)
        return norm


def make_optimizer(modules: Iterable[nn.Module], lr: float, config: Config) -> Optimizer:
    """The optimiser of agents with a world model, by the setting ``optimizer``."""
    kind = {"adam": Optimizer, "laprop": LaPropOptimizer}[config.optimizer]
    return kind(modules, lr, config)


def frozen(module: nn.Module) -> nn.Module:
    """A view of ``module`` on the same weights that needs no gradients: autograd then stores nothing for them."""
    view = copy.deepcopy(module).requires_grad_(False)
    for ours, theirs in zip(view.parameters(), module.parameters(), strict=True):
        ours.data = theirs.data
    return view


def cast_weights(module: nn.Module, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Give the layers of a `frozen` view weights of their own in ``dtype``; norms stay as they are.

    Autocast casts a weight without gradient again at every use, such as at each imagined step. Returns pairs of a cast
    weight and the weight that it has to be copied from before use.
    """
    pairs = []
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            continue
        for parameter in layer.parameters(recurse=False):
            original = parameter.data
            parameter.data = original.to(dtype)
            pairs.append((parameter.data, original))
    return pairs


def micro_batches(count: int, *inputs: Tree) -> Iterator[tuple[float, tuple[Tree, ...]]]:
    """Split ``inputs`` into ``count`` parts along the first dimension of their tensors, equal in all of them.

    Yields each part's share of the rows, and the part. Tensors without dimensions are in every part.
    """
    if count == 1:
        yield 1.0, inputs
        return
    size = len(inputs[0] if torch.is_tensor(inputs[0]) else next(iter(inputs[0].values())))
    for rows in torch.arange(size).tensor_split(min(count, size)):
        yield len(rows) / size, select_rows(inputs, slice(int(rows[0]), int(rows[-1]) + 1))


def add_metrics(total: dict[str, Any], share: float, metrics: dict[str, Any]) -> dict[str, Any]:
    """``total`` plus ``share`` of a micro-batch's metrics."""
    return {name: total.get(name, 0.0) + share * value.detach() for name, value in metrics.items()}


def select_rows(tree: Tree, rows: slice) -> Tree:
    """Those rows of every tensor in ``tree`` that has a first dimension."""
    if isinstance(tree, dict):
        return {key: select_rows(value, rows) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(select_rows(value, rows) for value in tree)
    return tree[rows] if torch.is_tensor(tree) and tree.dim() else tree
