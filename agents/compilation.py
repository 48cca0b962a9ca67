"""`compile: auto|on|off`: losses and policy steps under torch.compile, or eager where compiling fails."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 0.05  # relative; bfloat16 rounds to 0.4 %, and the roundings of a scan add up


def wanted(setting: str, device: torch.device) -> bool:
    """Whether ``compile`` asks for it on this device. ``auto`` does on a GPU, where small kernels are slow.

    On a CPU the first compilation takes minutes, which only long runs get back.
    """
    return setting == "on" or (setting == "auto" and device.type == "cuda")


class Compiled:
    """``function`` under torch.compile, on a GPU with CUDA graphs if ``graphs``.

    ``parameters`` are those by which its first output, a loss, is differentiated; without any it is a policy step. The
    first call also runs the eager function and compares loss and gradients. If the two differ, or compiling fails, a
    note on stderr says so and the eager function is used from then on.
    """

    def __init__(self, function: Callable[..., Any], parameters: Sequence[Tensor], graphs: bool):
        self.function, self.parameters, self.compared = function, parameters, False
        mode = "reduce-overhead" if graphs else None
        self.compiled = torch.compile(function, dynamic=False, mode=mode)

    def __call__(self, *inputs: Any) -> Any:
        if self.compiled is not None and not self.compared:
            self._check(inputs)
        if self.compiled is None:
            return self.function(*inputs)
        torch.compiler.cudagraph_mark_step_begin()
        outputs = self.compiled(*inputs)
        if not self.parameters:  # a policy's state is an input of the next call, which would overwrite it
            outputs = {key: value.clone() for key, value in outputs.items()}
        return outputs

    def _check(self, inputs: tuple) -> None:
        self.compared = True
        try:
            expected = self._values(self.function, inputs)
            found = self._values(self.compiled, inputs)
            wrong = [name for name in expected if not close(found[name], expected[name])]
            problem = f"{', '.join(wrong)} differ from the eager ones" if wrong else ""
        except Exception as error:  # a missing compiler, an unsupported operation: the eager function still works
            problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        if problem:
            print(f"note: not compiled, so training is slower ({problem})", file=sys.stderr)
            self.compiled = None

    def _values(self, function: Callable[..., Any], inputs: tuple) -> dict[str, Tensor]:
        """Norms of the outputs of ``function``: the loss and its gradients, or the policy's state."""
        if not self.parameters:
            return {key: value.float().norm() for key, value in function(*inputs).items()}
        loss = function(*inputs)[0]
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        norms = torch.stack([g.float().norm() for g in gradients if g is not None])
        return {"losses": loss.detach().clone(), "gradients": norms.norm()}


def close(found: Tensor, expected: Tensor) -> bool:
    return bool(torch.isclose(found, expected, rtol=TOLERANCE, atol=1e-4))
