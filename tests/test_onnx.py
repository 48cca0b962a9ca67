"""export.py --out policy.onnx: ONNX Runtime gives the actions of load_policy."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OFFLINE_METHODS, ROOT, tiny
from test_policy import ACTIONS, BOUNDS, frames, save_run

import export
from policy import PixelPolicy, load_policy
from policy.onnx_program import NEEDS, largest_onnx_difference, to_onnx
from policy.program import describe, export_program
from tools import BadInput
from training.methods import METHODS, AgentBuilder

missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"{missing} not installed (requirements/export.txt)")


def exported(logdir: Path, *flags: object) -> Path:
    out = logdir / "policy.onnx"
    export.main([str(a) for a in ("--logdir", logdir, "--out", out, *flags)])
    return out


# One method for each class of agent that acts; test_export.py exports every method.
ACTING = ("offline_dv2", "multitask_dv2", "drq_bc", "cql", "curl", "lompo")


@needs_onnx
@pytest.mark.parametrize(
    ("method", "settings"),
    [("bc", {}), pytest.param("coworld", {"dyn_discrete": 0}, marks=pytest.mark.slow)]
    + [pytest.param(m, {}, marks=pytest.mark.slow) for m in ACTING],
)
def test_a_model_of_every_agent_has_the_actions_of_load_policy(method: str, settings: dict):
    """Over steps with carried state, the images resized."""
    config = tiny(size="32,32", method=method, **settings)
    names = {"target": ACTIONS} if method in (*OFFLINE_METHODS, "online_dv2") else {"source": 2, "target": ACTIONS}
    agent = METHODS[method].agents(AgentBuilder(config, torch.device("cpu"), names, {}))["target"]
    policy, shape = PixelPolicy(agent, data={"action_map": BOUNDS}), (40, 30, 3)
    file = to_onnx(export_program(policy, shape), describe(policy, shape))
    assert largest_onnx_difference(file, policy, shape) <= export.TOLERANCE
    if method == "bc":  # the comparison can fail
        with torch.no_grad():
            list(agent.policy_modules()[-1].parameters())[-1].add_(0.1)
        assert largest_onnx_difference(file, policy, shape) > export.TOLERANCE


@needs_onnx
def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Of a run in bfloat16; the number of images may differ from call to call."""
    save_run(tmp_path, {"action_map": BOUNDS, "image_shape": (96, 72, 3)}, precision="bfloat16")
    exported(tmp_path)
    assert "3 actions, float32; actions are those of load_policy(..., precision='float32')" in capsys.readouterr().out
    page = (ROOT / "docs" / "deployment.md").read_text()
    example = re.search(r"## As ONNX.*?```python\n(.*?)```", page, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    program = {"__name__": "robot"}
    exec(example, program)
    noise = np.random.default_rng(0)
    policy = load_policy(tmp_path, precision="float32")
    policy.agent.latent_noise = lambda n, generator: torch.from_numpy(noise.random((n, 4)).astype(np.float32))[:, None]
    for image in frames(6, 96, 72, 3):
        np.testing.assert_allclose(program["act"](image), policy(image), rtol=0, atol=5e-5)  # units of 8 and 10
    about = program["about"]
    assert json.loads(json.dumps(about))["image"]["shape"] == [96, 72, 3] and about["precision"] == "float32"
    state = {f"state_{name}": np.zeros((5, *shape), np.float32) for name, shape in about["state"].items()}
    inputs = {"image": frames(1, 5, 96, 72, 3)[0], "first": np.ones(5, bool), "noise": np.zeros((5, 4), np.float32)}
    assert [o.name for o in program["session"].get_outputs()] == ["action", *(f"next_{n}" for n in about["state"])]
    assert program["session"].run(["action"], inputs | state)[0].shape == (5, ACTIONS)


@needs_onnx
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "cpu"], "--device has no effect on"),
        (["--precision", "bfloat16"], "can only be float32; remove it"),
    ],
)
def test_options_that_a_model_does_not_have(flags: list[str], message: str, tmp_path: Path):
    save_run(tmp_path)
    with pytest.raises(BadInput, match=message):
        exported(tmp_path, *flags)


@pytest.mark.parametrize("package", NEEDS)
def test_without_its_packages_it_is_refused(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(BadInput, match=rf"policy.onnx needs {package}: pip install -r .*requirements/export.txt"):
        exported(tmp_path)
