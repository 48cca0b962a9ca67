"""export.py: the program has the actions of load_policy, and runs without this repository."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import OFFLINE_METHODS, ROOT, tiny
from test_policy import ACTIONS, BOUNDS, frames, save_run
from torch.export.passes import move_to_device_pass
from torch.utils._pytree import tree_map

import export
from policy import PixelPolicy, load_policy
from policy.actions import ActionMap
from policy.images import BoxResize
from policy.program import describe, export_program, largest_difference, to_bytes
from tools import BadInput, exit_on_bad_input, resize_images
from training.methods import METHODS, AgentBuilder


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (96, 72, 64),
        (72, 96, 64),
        (480, 640, 64),
        (100, 64, 64),
        (64, 90, 64),
        (300, 41, 32),
        (63, 65, 64),
        (7, 200, 32),
    ],
)
def test_images_are_resized_as_by_pillow(height: int, width: int, size: int):
    images = frames(2, height, width, 3, seed=1)
    resized = BoxResize(height, width, size)(torch.from_numpy(images))
    assert resized.dtype == torch.uint8
    np.testing.assert_array_equal(resized.numpy(), resize_images(images, size))


def exported(logdir: Path, *flags: object) -> Path:
    """The program of a run."""
    out = logdir / "policy.pt2"
    export.main([str(a) for a in ("--logdir", logdir, "--out", out, *flags)])
    return out


class Exported(NamedTuple):
    """An exported program: its run, its file, and what the command printed."""

    run: Path
    file: Path
    printed: str

    def about(self) -> dict[str, Any]:
        """The description in the file."""
        files = {"policy.json": ""}
        torch.export.load(self.file, extra_files=files)
        return json.loads(files["policy.json"])


def export_once(run: Path, data: dict[str, Any], *flags: object, **settings: object) -> Exported:
    save_run(run, data, precision="bfloat16", **settings)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        file = exported(run, "--device", "cpu", *flags)
    return Exported(run, file, printed.getvalue())


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Of a Gaussian latent, in float32 as asked for, with the images and the units of the dataset."""
    data = {"action_map": BOUNDS, "image_shape": (96, 72, 3)}
    return export_once(tmp_path_factory.mktemp("gaussian"), data, "--precision", "float32", dyn_discrete=0)


@pytest.fixture(scope="module")
def categorical(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Of a categorical latent, in the bfloat16 of its run, with grey images of another size."""
    data = {"action_map": None, "image_shape": (96, 72, 1)}
    return export_once(tmp_path_factory.mktemp("categorical"), data, "--image_size", "40x30")


def test_the_example_of_the_page_runs_without_this_repository(gaussian: Exported, tmp_path: Path):
    shutil.copy(gaussian.file, tmp_path / "policy.pt2")
    page = (ROOT / "docs" / "deployment.md").read_text()
    example = re.search(r"`robot.py`:\n\n```python\n(.*?)```", page, re.DOTALL)[1]
    (tmp_path / "robot.py").write_text(example)
    images = frames(6, 96, 72, 3)
    torch.save(torch.from_numpy(images), tmp_path / "frames.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 100}
    arguments = ["robot.py", "policy.pt2", "frames.pt", "actions.pt"]
    done = subprocess.run([sys.executable, *arguments], **options)
    assert done.returncode == 0, done.stderr
    missing = subprocess.run([sys.executable, "-c", "import networks"], **options)
    assert "No module named 'networks'" in missing.stderr
    policy = load_policy(gaussian.run, precision="float32")
    expected = np.stack([policy(image) for image in images])
    np.testing.assert_allclose(torch.load(tmp_path / "actions.pt").numpy(), expected, rtol=0, atol=1e-5)
    assert expected[:, 1].min() > 1 and np.std(expected, 0).min() > 0.1  # in the user's units, and not constant


# One method for each code that acts. `coworld` is in the other tests here, `bc` and `curl` are in test_model_free.py.
ACTING = ("coworld", "bc", "curl", "lompo")


@pytest.mark.parametrize(
    ("method", "precision"),
    [("lompo", "bfloat16")]
    + [pytest.param(m, "bfloat16", marks=pytest.mark.slow) for m in METHODS if m != "lompo"]
    + [pytest.param(m, "float32", marks=pytest.mark.slow) for m in ACTING],
)
def test_a_program_of_every_method_has_the_actions_of_load_policy(method: str, precision: str):
    config = tiny(size="32,32", method=method, precision=precision)
    names = {"target": ACTIONS} if method in (*OFFLINE_METHODS, "online_dv2") else {"source": 2, "target": ACTIONS}
    agent = METHODS[method].agents(AgentBuilder(config, torch.device("cpu"), names, {}))["target"]
    policy = PixelPolicy(agent)
    about = describe(policy)
    assert about["precision"] == precision
    file = to_bytes(export_program(policy), about)
    assert largest_difference(file, policy) <= export.TOLERANCE
    if method in ("bc", "coworld") and precision == "bfloat16":  # the comparison can fail
        agent.config = agent.config.replace(precision="float32")
        assert largest_difference(file, policy) > export.TOLERANCE


def test_the_comparison_with_the_policy_can_fail(gaussian: Exported):
    """The command makes it before it writes the file. Here of a program with the same policy in another precision."""
    file = gaussian.file.read_bytes()
    assert largest_difference(file, load_policy(gaussian.run, precision="float32")) <= export.TOLERANCE
    assert largest_difference(file, load_policy(gaussian.run)) > export.TOLERANCE


@pytest.mark.parametrize("latent", ["gaussian", "categorical"])
def test_a_program_can_be_moved_to_another_device(latent: str, request: pytest.FixtureRequest):
    """By torch's pass, and by ``to``. On `meta` an operation on tensors of two devices raises."""
    program = torch.export.load(request.getfixturevalue(latent).file)
    inputs, targets = program.example_inputs[0], {str(node.target) for node in program.graph.nodes}
    assert not [target for target in targets if "_assert_tensor_metadata" in target or "autocast" in target]
    by_to = program.module().to("meta")
    moved = move_to_device_pass(program, "meta").module()
    for step in (moved, by_to):
        action, state = step(*tree_map(lambda tensor: tensor.to("meta"), inputs))
        assert action.shape == (2, ACTIONS) and {t.device.type for t in (action, *state.values())} == {"meta"}
    with pytest.raises((RuntimeError, NotImplementedError)):  # the test can fail
        moved(*inputs)


def test_a_policy_on_another_device_is_exported_there():
    """As with --device cuda. `meta` has no values to compare."""
    config, meta = tiny(size="32,32"), torch.device("meta")
    agent = METHODS["coworld"].agents(AgentBuilder(config, meta, {"source": 2, "target": ACTIONS}, {}))["target"]
    policy = PixelPolicy.__new__(PixelPolicy)
    vars(policy).update(agent=agent, name="target", task="", data={}, size=32, action_dim=ACTIONS)
    policy.cameras, policy.states, policy.action_map = {"image": (40, 30, 3)}, {}, ActionMap(None, ACTIONS).to(meta)
    program = export_program(policy)
    action, state = program.module()(*program.example_inputs[0])
    assert {tensor.device for tensor in (action, *state.values())} == {meta}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_program_for_a_gpu_needs_one(tmp_path: Path):
    save_run(tmp_path)
    with pytest.raises(BadInput, match=r"device cuda: .* finds no GPU here; use --device cpu"):
        exported(tmp_path, "--device", "cuda")


def test_the_precision_of_a_program_is_the_runs_or_the_one_asked_for(gaussian: Exported, categorical: Exported):
    for program, precision in ((gaussian, "float32"), (categorical, "bfloat16")):
        assert program.about()["precision"] == precision
        assert f"3 actions, {precision};" in program.printed


def test_the_number_of_images_may_change_and_the_file_says_what_it_needs(categorical: Exported):
    about, step = categorical.about(), torch.export.load(categorical.file).module()
    assert about["task"] == "my_robot" and about["agent"] == "target" and about["version"] == 1
    assert about["image"] == {"shape": [40, 30, 1], "dtype": "uint8", "model_size": 32}
    assert about["action"] == {
        "names": ["action_0", "action_1", "action_2"],
        "low": [-1.0] * ACTIONS,
        "high": [1.0] * ACTIONS,
    }
    assert about["noise"] == {"shape": [4], "distribution": "uniform"}
    for n in (1, 3):
        images, policy = frames(1, n, 40, 30, 1)[0], load_policy(categorical.run)
        state = {name: torch.full((n, *shape), 9.0) for name, shape in about["state"].items()}
        noise = torch.rand(n, 4, generator=torch.Generator().manual_seed(0))
        action, state = step(torch.from_numpy(images), state, torch.ones(n, dtype=torch.bool), noise)
        np.testing.assert_allclose(action.detach().numpy(), policy(images), rtol=0, atol=1e-5)
        assert {name: list(value.shape[1:]) for name, value in state.items()} == about["state"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "x.pt"], "--out x.pt: give the name of a file that ends in .pt2 or .onnx"),
        (["--device", "tpu"], "device 'tpu' is not known; give auto, cpu or cuda"),
        (["--image_size", "96"], "--image_size 96: give height x width in pixels"),
        (["--image_size", "64x64x2"], "--image_size 64x64x2: give height x width in pixels"),
        (["--image_size", "0x64"], "--image_size 0x64: give height x width"),
        (["--agent", "sorce"], "has no sorce agent, only source, target"),
        (["--agent", "source"], "the source agent observes low-dimensional states (joints), not images"),
        (["--logdir", "missing"], "no checkpoint at missing/checkpoint.pt"),
    ],
)
def test_bad_input(tmp_path: Path, flags: list[str], message: str):
    save_run(tmp_path, state=True)
    with pytest.raises(BadInput, match=re.escape(message)):
        export.main(["--logdir", str(tmp_path), "--out", str(tmp_path / "policy.pt2"), *flags])
    assert not (tmp_path / "policy.pt2").exists()


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["--logdir", str(tmp_path), "--out", str(tmp_path / "policy.pt2")]
    with pytest.raises(SystemExit) as stopped:
        exit_on_bad_input(lambda: export.main(arguments))
    output, errors = capsys.readouterr()
    assert stopped.value.code == 2 and output == "" and len(errors.splitlines()) == 1


def test_a_program_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_run(tmp_path)
    monkeypatch.setattr(export, "export_program", lambda policy, shape: None)
    monkeypatch.setattr(export, "to_bytes", lambda program, description: b"")
    monkeypatch.setattr(export, "largest_difference", lambda file, policy: float("nan"))
    with pytest.raises(BadInput, match="differ from the policy's by nan"):
        exported(tmp_path)
    assert not (tmp_path / "policy.pt2").exists()
