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
from torch.utils._pytree import tree_map

from networks import State
from policy.images import BoxResize
from policy.pixel_policy import PixelPolicy

Shape = tuple[int, int, int]  # height, width and channels of images
METADATA = "policy.json"  # the name of the description inside the file
VERSION = 1  # of the program's inputs, outputs and description
SEVERAL_VERSION = 2  # the same, of a program that takes several cameras, or states: a dict of observations
Observed = Tensor | dict[str, Tensor]  # images (N, H, W, C) uint8; or images and states (N, S) by name


class PolicyStep(nn.Module):
    """One policy step with images and actions in the user's form, the mode of the policy, as a function of its inputs.

    Contains only what acting needs: no decoder, reward head or critic.
    """

    def __init__(self, policy: PixelPolicy, shapes: dict[str, Shape]):
        """``shapes`` are those of the images of each camera."""
        super().__init__()
        self.agent, self.action_map, self.states = policy.agent, policy.action_map, [*policy.states]
        resizers = {}
        for name, (height, width, _) in shapes.items():
            resizers[name] = BoxResize(height, width, policy.size)
        self.cameras, self.resizers = [*resizers], nn.ModuleList(resizers.values())  # names may have dots
        self.parts = nn.ModuleList(policy.agent.policy_modules())  # an agent is not a module

    def forward(self, image: Observed, state: State, first: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        """image, or all observations by name; state of (N, ...), first (N,) bool, noise (N, S) -> (action (N, A), new
        state)."""
        keep = (~first).float().unsqueeze(-1)
        observed = image if isinstance(image, dict) else {"image": image}
        images = [resize(observed[name]) for name, resize in zip(self.cameras, self.resizers, strict=True)]
        inputs = {"image": images[0] if len(images) == 1 else torch.cat(images, -1)}
        inputs = {name: array[:, None] for name, array in {**inputs, **{n: observed[n] for n in self.states}}.items()}
        with self.agent.autocast():
            state = self.agent.policy_step(inputs, state, keep, noise[:, None], None)
        return self.action_map(state["action"].float()), state


def camera_shapes(policy: PixelPolicy, image_shape: tuple[int, ...] | None = None) -> dict[str, Shape]:
    """The shape of the images of each camera: the dataset's, with the sides of ``image_shape`` if it is given."""
    shapes = {}
    for name, shape in policy.cameras.items():
        shapes[name] = (*(image_shape or ()), *shape[len(image_shape or ()) :])
    return shapes


def export_program(policy: PixelPolicy, image_shape: tuple[int, ...] | None = None) -> ExportedProgram:
    """`PolicyStep` for images of ``image_shape`` (H, W) or (H, W, C), by default the dataset's; N may be any number.

    The program is for the device of the policy's agent, and can be moved to another (docs/deployment.md): it has the
    casts of autocast as operations, and no assertions about devices.
    """
    shapes = camera_shapes(policy, image_shape)
    module = PolicyStep(policy, shapes)
    module = module.to(policy.agent.device).eval()
    n = Dim("n", min=1)
    inputs = example_inputs(policy, shapes, 2)
    rows = {0: n}
    observed = dict.fromkeys(inputs[0], rows) if isinstance(inputs[0], dict) else rows
    dynamic = observed, dict.fromkeys(inputs[1], rows), rows, rows
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)
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


def takes_dict(policy: PixelPolicy) -> bool:
    """Whether a program takes its observations by name: those of several cameras, or states beside the image."""
    return len(policy.cameras) > 1 or bool(policy.states)


def example_inputs(policy: PixelPolicy, shapes: dict[str, Shape], n: int) -> tuple[Observed, State, Tensor, Tensor]:
    """Inputs of a first step for N black images of ``shapes`` and states of zeros, on the policy's device."""
    device = policy.agent.device
    state, noise = policy.agent.initial_state(n), torch.zeros_like(policy.agent.latent_noise(n)[:, 0])
    observed = {name: torch.zeros(n, *shape, dtype=torch.uint8, device=device) for name, shape in shapes.items()}
    observed |= {name: torch.zeros(n, size, device=device) for name, size in policy.states.items()}
    first = torch.ones(n, dtype=torch.bool)
    return observed if takes_dict(policy) else observed["image"], state, first.to(device), noise


def describe(policy: PixelPolicy, image_shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """What a user of the program has to know, as JSON's types. Shapes are without N.

    Of a program that takes its observations by name, ``observation`` has the entry of each in place of ``image``.
    """
    shapes, actions = camera_shapes(policy, image_shape), policy.action_map
    names = policy.data.get("action_names") or [f"action_{i}" for i in range(policy.action_dim)]
    _, state, _, noise = example_inputs(policy, shapes, 1)
    images = {
        name: {"shape": list(shape), "dtype": "uint8", "model_size": policy.size} for name, shape in shapes.items()
    }
    states = {name: {"shape": [size], "dtype": "float32"} for name, size in policy.states.items()}
    several = takes_dict(policy)
    return {
        "version": SEVERAL_VERSION if several else VERSION,
        "torch": torch.__version__,
        "task": policy.task,
        "agent": policy.name,
        "method": policy.agent.config.method,
        "precision": policy.agent.config.precision,
        "device": str(policy.agent.device),
        **({"observation": {**images, **states}} if several else images),
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


Step = Callable[[Observed, State, Tensor, Tensor], tuple[Tensor, State]]  # the inputs and outputs of `PolicyStep`


def largest_difference(file: bytes, policy: PixelPolicy) -> float:
    """`compare` for the program of `to_bytes`."""
    program = torch.export.load(io.BytesIO(file))
    return compare(program.module(), program.example_inputs[0], policy)


def compare(step: Step, inputs: tuple[Observed, State, Tensor, Tensor], policy: PixelPolicy, steps: int = 5) -> float:
    """The largest difference of the actions of ``step`` to those of ``policy``, as actions in [-1, 1].

    On ``steps`` random observations for each of two episodes; the second one begins anew half way.
    ``inputs`` are those of a first step for two images.
    """
    device, seed = policy.agent.device, 0
    policy = PixelPolicy(policy.agent, policy.name, policy.task, policy.data, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    observed, state, first, _ = inputs
    scale = torch.where(policy.action_map.scale > 0, policy.action_map.scale, 1.0).cpu()
    worst = 0.0
    noise = torch.Generator(device).manual_seed(seed)
    for t in range(steps):
        observed = random_like(observed, generator)
        if t == steps // 2:
            first = torch.tensor([False, True], device=device)
            policy.reset([1])
        with torch.no_grad():
            on_device = tree_map(lambda tensor: tensor.to(device), observed)
            actions, state = step(on_device, state, first, policy.agent.latent_noise(2, noise)[:, 0])
        expected = torch.as_tensor(policy(tree_map(lambda tensor: tensor.numpy(), observed), sample=False))
        worst = max(worst, float(((actions.cpu() - expected).abs() / scale).max()))
        first = torch.zeros(2, dtype=torch.bool, device=device)
    return worst


def random_like(observed: Observed, generator: torch.Generator) -> Observed:
    """Random observations of the same shapes, on the CPU."""
    if isinstance(observed, dict):
        return {name: random_like(tensor, generator) for name, tensor in observed.items()}
    if observed.dtype == torch.uint8:
        return torch.randint(0, 256, observed.shape, dtype=torch.uint8, generator=generator)
    return torch.randn(observed.shape, generator=generator)
