"""LaProp with adaptive gradient clipping and a warm-up ("Optimizer")."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

SMALLEST_NORM = 1e-3  # of a parameter, in adaptive clipping


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], limit: float) -> None:
    """Adaptive gradient clipping by tensor: a gradient's norm is at most ``limit`` times its parameter's norm.

    Of norms below 1e-3, 1e-3 counts.
    """
    found = [p for p in parameters if p.grad is not None]
    if not found:
        return
    gradients = [p.grad for p in found]
    most = torch._foreach_norm([p.detach() for p in found])
    torch._foreach_clamp_min_(most, SMALLEST_NORM)
    torch._foreach_mul_(most, limit)
    ratios = torch._foreach_div(torch._foreach_norm(gradients), most)
    torch._foreach_clamp_min_(ratios, 1.0)
    torch._foreach_div_(gradients, ratios)


class LaProp(torch.optim.Optimizer):
    """Momentum of gradients that are normalised by their root mean square (arXiv 2002.04839).

        v = b2 v + (1 - b2) g^2,   m = b1 m + (1 - b1) g / (sqrt(v / (1 - b2^t)) + eps)
        parameter = (1 - lr_t decay) parameter - lr_t m / (1 - b1^t)

    The learning rate rises linearly: lr_t = lr min(1, t / warm_up).
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, eps: float, warm_up: int, weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ):  # fmt: skip
        defaults = {"lr": lr, "eps": eps, "warm_up": warm_up, "weight_decay": weight_decay, "betas": betas}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            found = [p for p in group["params"] if p.grad is not None]
            if not found:
                continue
            for p in found:
                if p not in self.state:
                    self.state[p] = {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p]["step"] += 1
            gradients, states = [p.grad for p in found], [self.state[p] for p in found]
            squares, moments = [s["exp_avg_sq"] for s in states], [s["exp_avg"] for s in states]
            steps = [s["step"] for s in states]
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
            roots = torch._foreach_div(squares, [1 - beta2**t for t in steps])
            torch._foreach_sqrt_(roots)
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_lerp_(moments, torch._foreach_div(gradients, roots), 1 - beta1)
            rates = [group["lr"] * min(1.0, t / max(group["warm_up"], 1)) for t in steps]
            if group["weight_decay"]:
                torch._foreach_mul_(found, [1 - rate * group["weight_decay"] for rate in rates])
            changes = torch._foreach_mul(moments, [-r / (1 - beta1**t) for r, t in zip(rates, steps, strict=True)])
            torch._foreach_add_(found, changes)
