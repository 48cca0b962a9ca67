"""A policy as an ONNX model, which ONNX Runtime and other engines run without torch."""

import json
import logging
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from networks import State
from policy.pixel_policy import PixelPolicy
from policy.program import METADATA, Observed, camera_shapes, compare, example_inputs
from tools import require

OPSET = 20  # ONNX operators, which runtimes of 2024 and newer have
NEEDS = ("onnx", "onnxscript", "onnxruntime")


def check_onnx(what: str) -> None:
    """Raises BadInput if a package that an export to ONNX needs is not installed."""
    for package in NEEDS:
        require(package, "export", what)


def input_names(state: list[str], observed: list[str] | None = None) -> list[str]:
    """The model's inputs, for a policy with these entries of its state, and of its observations if they have names."""
    images = ["image"] if observed is None else [f"observation_{name}" for name in observed]
    return [*images, *(f"state_{key}" for key in state), "first", "noise"]


def output_names(state: list[str]) -> list[str]:
    """The model's outputs: the action, and for each ``state_KEY`` its next value ``next_KEY``."""
    return ["action", *(f"next_{key}" for key in state)]


def to_onnx(program: ExportedProgram, description: dict[str, Any]) -> bytes:
    """The ONNX model of a program of `program.export_program`, with its description in the metadata `METADATA`."""
    state = list(description["state"])
    names = input_names(state, list(description["observation"]) if "observation" in description else None)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own parts
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=names,
                output_names=output_names(state), external_data=False, verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    model = exported.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(description, indent=1)
    return model.SerializeToString()


def largest_onnx_difference(file: bytes, policy: PixelPolicy, shape: tuple[int, ...]) -> float:
    """`program.compare` for the model of `to_onnx`, run by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def step(observed: Observed, state: State, first: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        by_name = observed if isinstance(observed, dict) else None
        tensors = [*(by_name.values() if by_name else [observed]), *state.values(), first, noise]
        names = input_names(list(state), by_name and list(by_name))
        inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        action, *values = map(torch.from_numpy, session.run(output_names(list(state)), inputs))
        return action, dict(zip(state, values, strict=True))

    return compare(step, example_inputs(policy, camera_shapes(policy, shape), 2), policy)
