"""Updates under torch.compile equal eager ones, and what cannot be compiled, or differs, runs eagerly."""

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import tiny
from test_agents import batch, update_target
from torch import Tensor
from updates import with_ends

from agents.compilation import Compiled, wanted
from agents.coworld import SourceAgent, TargetAgent
from ops import one_hot

needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture
def nothing_is_compiled_before() -> Iterator[None]:
    import torch._dynamo  # takes seconds to load

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def short(**flags: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A target update with two steps of small images and two imagined steps, so that compiling is quick."""
    torch.manual_seed(0)
    config = tiny(size="16,16", imag_horizon=2, kl_free=0.0, eta_steps=100, **flags)
    source, target = (kind(config, 6, 6, torch.device("cpu")) for kind in (SourceAgent, TargetAgent))
    assert isinstance(target._behavior_loss, Compiled) == ("compile" in flags)
    data = {key: value[:, :2] for key, value in batch(size=16).items()}
    torch.manual_seed(1)
    metrics = update_target(target, source, data)
    optimizers = (target.model_opt, target.actor_opt, target.critic_opt)
    moments = [state["exp_avg"] for optimizer in optimizers for state in optimizer.adam.state.values()]
    return metrics, dict(enumerate(moments))


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.usefixtures("nothing_is_compiled_before")
def test_compiled_updates_equal_eager_ones(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(one_hot, "SMALLEST", 1)  # also with the heads of large latents
    eager, compiled = short(), short(compile="on")
    assert "not compiled" not in capfd.readouterr().err
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.usefixtures("nothing_is_compiled_before")
@pytest.mark.parametrize("discrete", [0, 4])
def test_compiled_losses_of_several_episodes_in_a_sequence_equal_eager_ones(discrete: int):
    """Of the world model, as on a GPU, and of actor and critic."""
    torch.manual_seed(0)
    config = tiny(size="16,16", imag_horizon=2, kl_free=0.0, dyn_discrete=discrete, pred_discount=True)
    target = TargetAgent(config, 6, 6, torch.device("cpu"))
    data = with_ends({key: value[:, :3] for key, value in batch(size=16).items()})
    noise = target.noise(data)
    (start,), rollout = target.start_imagination(target.infer_posterior(data))
    assert "weight" in start
    for function, inputs, optimizers in (
        (target.world_model_loss, (data, noise), [target.model_opt]),
        (target.behavior_loss, (start, rollout), [target.actor_opt, target.critic_opt]),
    ):
        parameters = [p for optimizer in optimizers for p in optimizer.parameters]
        found = []
        for call in (function, torch.compile(function, dynamic=False, backend="aot_eager")):  # seconds, not minutes
            loss = call(*inputs)[0]
            found.append([loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


class Line:
    """The squared error of a line, a loss of two inputs whose first output is differentiated by its parameters."""

    def __init__(self):
        self.slope, self.offset = (torch.tensor(value, requires_grad=True) for value in (2.0, 1.0))
        self.parameters, self.calls = [self.slope, self.offset], 0

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor], None]:
        error = (self.slope * x + self.offset - y).square().mean()
        return error, {"error": error}, None

    def counted(self, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor], None]:
        self.calls += 1
        return self.loss(*inputs)


def gradients(line: Line, function: Callable) -> list[float]:
    """Those at x = 1, 3 and y = 0: the errors are 3 and 7."""
    loss, metrics, _ = function(torch.tensor([1.0, 3.0]), torch.zeros(2))
    assert loss.item() == metrics["error"].item() == (9 + 49) / 2
    return [gradient.item() for gradient in torch.autograd.grad(loss, line.parameters)]


EXPECTED = [3 * 1 + 7 * 3, 3 + 7]


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.usefixtures("nothing_is_compiled_before")
def test_a_function_that_compiles_is_used_compiled(capfd: pytest.CaptureFixture):
    line = Line()
    compiled = Compiled(line.loss, line.parameters, graphs=False)
    for _ in range(2):
        assert gradients(line, compiled) == EXPECTED
    assert compiled.compiled is not None and capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_compiled_before")
def test_if_compiling_fails_the_function_runs_eagerly_with_one_note(capfd: pytest.CaptureFixture):
    import torch._inductor.config

    line = Line()
    fallen_back = Compiled(line.loss, line.parameters, graphs=False)
    no_compiler = {"cpp.cxx": (None, "no-such-compiler"), "fx_graph_cache": False, "fx_graph_remote_cache": False}
    with torch._inductor.config.patch(no_compiler), torch._functorch.config.patch(enable_autograd_cache=False):
        for _ in range(2):
            assert gradients(line, fallen_back) == EXPECTED
    lines = capfd.readouterr().err.splitlines()
    assert [text.startswith("note: not compiled, so training is slower (") for text in lines] == [True]


@pytest.mark.parametrize(("scale", "by"), [(1.2, "losses, gradients"), (1.01, "")])
def test_a_compiled_function_that_differs_is_replaced(scale: float, by: str, capfd: pytest.CaptureFixture):
    """By more than 5 %; the step after it is of the eager function."""
    line = Line()
    compiled = Compiled(line.counted, line.parameters, graphs=False)
    compiled.compiled = lambda *inputs: (scale * line.loss(*inputs)[0], {}, None)
    loss = compiled(torch.tensor([1.0, 3.0]), torch.zeros(2))[0]
    assert loss.item() == pytest.approx(29 * (1 if by else scale))
    assert capfd.readouterr().err == (
        f"note: not compiled, so training is slower ({by} differ from the eager ones)\n" if by else ""
    )
    assert line.calls == (2 if by else 1)


def test_auto_compiles_on_a_gpu_only():
    found = {
        (setting, kind): wanted(setting, torch.device(kind))
        for setting in ("auto", "on", "off")
        for kind in ("cpu", "cuda")
    }
    assert [key for key, value in found.items() if value] == [("auto", "cuda"), ("on", "cpu"), ("on", "cuda")]
