"""A policy as a torch.export program: weights, image scaling and action map in one file that needs torch alone."""

import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from agents.base import BaseAgent
from networks import State
from policy.actions import ActionMap
from policy.images import BoxResize
from policy.pixel_policy import PixelPolicy

METADATA = "policy.json"  # the name of the description inside the file
VERSION = 1  # of the program's inputs, outputs and description


class PolicyStep(nn.Module):
    """One policy step with images and actions in the user's form, the mode of the policy, as a function of its inputs.

    Contains only what acting needs: no decoder, reward head or critic.
    """

    def __init__(self, agent: BaseAgent, resize: BoxResize, action_map: ActionMap):
        super().__init__()
        self.agent, self.resize, self.action_map = agent, resize, action_map
        self.parts = nn.ModuleList(agent.policy_modules())  # an agent is not a module

    def forward(self, image: Tensor, state: State, first: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        """image (N, H, W, C) uint8, state of (N, ...), first (N,) bool, noise (N, S) -> (action (N, A), new state)."""
        keep = (~first).float().unsqueeze(-1)
        inputs = {"image": self.resize(image)[:, None]}
        with self.agent.autocast():
            state = self.agent.policy_step(inputs, state, keep, noise[:, None], None)
        return self.action_map(state["action"].float()), state


def export_program(policy: PixelPolicy, image_shape: tuple[int, int, int] | None = None) -> ExportedProgram:
    """`PolicyStep` for images of ``image_shape`` (H, W, C), by default the dataset's; N may be any number.

    The program is for the device of the policy's agent, and can be moved to another (docs/deployment.md): it has the
    casts of autocast as operations, and no assertions about devices.
    """
    shape = image_shape or policy.image_shape
    module = PolicyStep(policy.agent, BoxResize(*shape[:2], policy.size), policy.action_map)
    module = module.to(policy.agent.device).eval()
    n = Dim("n", min=1)
    inputs = example_inputs(policy, shape, 2)
    rows = {0: n}
    shapes = rows, dict.fromkeys(inputs[1], rows), rows, rows
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
        program = program.run_decompositions({})  # without it, autocast is a region for one kind of device
    remove_assertions(program)
    return program


def remove_assertions(program: ExportedProgram) -> None:
    """Remove the assertions that tensors have the type and the device that they had during the export."""
    for module in filter(lambda module: isinstance(module, GraphModule), program.graph_module.modules()):
        for node in module.graph.nodes:
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                module.graph.erase_node(node)
        module.recompile()
    program.validate()


def example_inputs(policy: PixelPolicy, shape: tuple[int, int, int], n: int) -> tuple[Tensor, State, Tensor, Tensor]:
    """Inputs of a first step for N black images, on the policy's device."""
    device = policy.agent.device
    state, noise = policy.agent.initial_state(n), torch.zeros_like(policy.agent.latent_noise(n)[:, 0])
    image, first = torch.zeros(n, *shape, dtype=torch.uint8, device=device), torch.ones(n, dtype=torch.bool)
    return image, state, first.to(device), noise


def describe(policy: PixelPolicy, image_shape: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """What a user of the program has to know, as JSON's types. Shapes are without N."""
    shape, actions = image_shape or policy.image_shape, policy.action_map
    names = policy.data.get("action_names") or [f"action_{i}" for i in range(policy.action_dim)]
    _, state, _, noise = example_inputs(policy, shape, 1)
    return {
        "version": VERSION,
        "torch": torch.__version__,
        "task": policy.task,
        "agent": policy.name,
        "method": policy.agent.config.method,
        "precision": policy.agent.config.precision,
        "device": str(policy.agent.device),
        "image": {"shape": list(shape), "dtype": "uint8", "model_size": policy.size},
        "action": {"names": list(names), "low": actions.low.tolist(), "high": actions.high.tolist()},
        "state": {key: list(value.shape[1:]) for key, value in state.items()},
        "noise": {"shape": list(noise.shape[1:]), "distribution": policy.agent.noise_distribution},
    }


def to_bytes(program: ExportedProgram, description: dict[str, Any]) -> bytes:
    """The file of a program with its description."""
    file = io.BytesIO()
    with warnings.catch_warnings():  # of weights in the channels-last layout that are not on the CPU; ours are
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, file, extra_files={METADATA: json.dumps(description, indent=1)})
    return file.getvalue()


Step = Callable[[Tensor, State, Tensor, Tensor], tuple[Tensor, State]]  # the inputs and outputs of `PolicyStep`


def largest_difference(file: bytes, policy: PixelPolicy) -> float:
    """`compare` for the program of `to_bytes`."""
    program = torch.export.load(io.BytesIO(file))
    return compare(program.module(), program.example_inputs[0], policy)


def compare(step: Step, inputs: tuple[Tensor, State, Tensor, Tensor], policy: PixelPolicy, steps: int = 5) -> float:
    """The largest difference of the actions of ``step`` to those of ``policy``, as actions in [-1, 1].

    On ``steps`` random images for each of two episodes; the second one begins anew half way.
    ``inputs`` are those of a first step for two images.
    """
    device, seed = policy.agent.device, 0
    policy = PixelPolicy(policy.agent, policy.name, policy.task, policy.data, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    image, state, first, _ = inputs
    scale = torch.where(policy.action_map.scale > 0, policy.action_map.scale, 1.0).cpu()
    worst = 0.0
    noise = torch.Generator(device).manual_seed(seed)
    for t in range(steps):
        image = torch.randint(0, 256, image.shape, dtype=torch.uint8, generator=generator)
        if t == steps // 2:
            first = torch.tensor([False, True], device=device)
            policy.reset([1])
        with torch.no_grad():
            actions, state = step(image.to(device), state, first, policy.agent.latent_noise(2, noise)[:, 0])
        expected = torch.as_tensor(policy(image.numpy(), sample=False))
        worst = max(worst, float(((actions.cpu() - expected).abs() / scale).max()))
        first = torch.zeros(2, dtype=torch.bool, device=device)
    return worst
