"""Runs with two cameras and states on real simulators: resuming, policies, programs, pictures, what is refused."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import SMALL, co_training, command, made_once, tiny
from PIL import Image
from test_co_training import assert_same_results, train
from test_gym import OUTSIDE

import co_training as program
import collect
import evaluate as evaluate_program
import export
from policy import PixelPolicy, load_policy
from policy.onnx_program import NEEDS, largest_onnx_difference, to_onnx
from policy.program import describe, export_program, largest_difference, to_bytes
from replay import DataMapping, OfflineDataset
from senses import Senses
from tools import BadInput, exit_on_bad_input
from training.checkpoint import load_checkpoint
from training.methods import METHODS, AgentBuilder
from training.pictures import prediction_sheet
from training.visuals import open_loop_video
from wrappers import make_env

CAMERAS = ("--dmc_camera", "0,back")
SENSES = (*CAMERAS, "--state_keys", "orientations,height", "--state_embed", "8", "--state_standardize", "True")
STATES = {"orientations": 14, "height": 1}


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three episodes of walker_downhill, seen by two cameras."""

    def record(folder: Path) -> None:
        flags = ["--episodes", 3, "--envs", 0, "--size", "32,32", *CAMERAS, "--configs", "defaults", "dmc", "debug"]
        collect.main([str(a) for a in ("--task", "walker_downhill", "--out", folder, *flags)])

    with made_once(tmp_path_factory, "walker_two_cameras", record) as folder:
        yield folder


@pytest.fixture(scope="module")
def whole(walker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with two cameras and states, without interruption."""

    def run(logdir: Path) -> None:
        program.main(co_training(walker, logdir, *SMALL, *SENSES))

    with made_once(tmp_path_factory, "whole_senses", run) as folder:
        yield folder


def test_collected_episodes_have_both_cameras_and_the_states(walker: Path):
    assert json.loads((walker / "dataset.json").read_text())["camera"] == "side,back"
    data = OfflineDataset(walker, size=32, mapping=DataMapping(state_keys="orientations,height"))
    assert data.cameras == {"side": [32, 32, 3], "back": [32, 32, 3]} and data.states == STATES
    image = data.read(0)["image"]
    for index, camera in enumerate(("side", "back")):
        env = make_env("walker_downhill", size=32, camera=camera)
        assert image[..., 3 * index : 3 * index + 3].std() > 10 and env.observation_space["image"].shape[-1] == 3
        env.close()
    assert not np.array_equal(image[..., :3], image[..., 3:])


def test_two_cameras_are_the_frames_of_each():
    both = make_env("cheetah_run", size=32, camera="side,back", background=None)
    seen = both.reset(seed=3)[0]["image"]
    for index, camera in enumerate(("side", "back")):
        one = make_env("cheetah_run", size=32, camera=camera)
        assert np.array_equal(one.reset(seed=3)[0]["image"], seen[..., 3 * index : 3 * index + 3])
        one.close()
    both.close()
    for camera in ("side,side", "side,", ",".join(map(str, range(9)))):
        with pytest.raises(BadInput, match="give up to 8 different cameras"):
            make_env("cheetah_run", size=32, camera=camera)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "camera"), [("metaworld_drawer-close", "corner,topview"), ("robodesk_push_green", "top,0")]
)
def test_two_cameras_of_the_other_suites(task: str, camera: str):
    env = make_env(task, size=32, camera=camera)
    seen = env.reset(seed=3)[0]["image"]
    first, second = camera.split(",")
    assert env.get_wrapper_attr("description")["camera"].split(",")[0] == first
    env.close()
    for index, name in enumerate((first, second)):
        one = make_env(task, size=32, camera=name)
        assert np.array_equal(one.reset(seed=3)[0]["image"], seen[..., 3 * index : 3 * index + 3])
        one.close()


def test_a_run_learns_and_shows_both(walker: Path, whole: Path, capsys: pytest.CaptureFixture):
    points = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    for name in ("source/model/state_loss", "target/model/state_loss", "target/ties/state_alignment"):
        assert any(name in point for point in points), name
    saved = load_checkpoint(whole / "checkpoint.pt")
    assert saved["channels"] == {"source": 6, "target": 6} and saved["states"] == {"source": STATES, "target": STATES}
    data = OfflineDataset(walker, size=32, mapping=DataMapping(state_keys="orientations,height"))
    heights = np.concatenate([data.read(i, keys=("height",))["height"] for i in range(data.episodes)])
    scale = {name: saved["agents"][name]["world"] for name in ("source", "target")}
    assert scale["target"]["state_normalizer.rows"] == len(heights) != scale["source"]["state_normalizer.rows"] > 0
    assert scale["target"]["state_normalizer.mean"][14].item() == pytest.approx(heights.mean(), rel=1e-5)
    assert saved["data"]["cameras"] == {"side": [32, 32, 3], "back": [32, 32, 3]}
    video = next((whole / "videos").glob("target-open_loop*.gif"))
    assert Image.open(video).size == (66 + 3 * (2 * 32 + 2), 2 * 18 + 3 * (32 + 2)), "a row of names above the pictures"
    evaluation = next((whole / "videos").glob("target-evaluation*.gif"))
    assert Image.open(evaluation).size == (64, 32)
    evaluate_program.main(["--logdir", str(whole), "--episodes", "1", "--video", str(whole.parent / "senses.gif")])
    assert "return" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
def test_a_resumed_run_equals_an_uninterrupted_one(walker: Path, whole: Path, tmp_path: Path):
    """Stopped inside an episode of an aligned phase, after updates of both agents."""
    with pytest.raises(SystemExit) as stopped:
        train(walker, tmp_path, *SENSES, stop_at=58)
    assert stopped.value.code == 128 + signal.SIGTERM
    train(walker, tmp_path, *SENSES)
    assert_same_results(whole, tmp_path)


def test_the_program_of_a_run_has_the_actions_of_load_policy(whole: Path, tmp_path: Path, capsys):
    out = tmp_path / "policy.pt2"
    export.main(["--logdir", str(whole), "--out", str(out), "--precision", "float32"])
    assert "images side 32x32x3, back 32x32x3, states orientations, height, 6 actions" in capsys.readouterr().out
    files = {"policy.json": ""}
    step = torch.export.load(out, extra_files=files).module()
    about = json.loads(files["policy.json"])
    assert about["version"] == 2 and about["observation"]["height"] == {"shape": [1], "dtype": "float32"}
    assert list(about["observation"]) == ["side", "back", *STATES] and "image" not in about
    rng, policy = np.random.default_rng(0), load_policy(whole, precision="float32")
    frames = {name: rng.integers(0, 256, (3, 32, 32, 3), np.uint8) for name in ("side", "back")}
    states = {name: rng.standard_normal((3, size)).astype(np.float32) for name, size in STATES.items()}
    state = {name: torch.zeros(3, *shape) for name, shape in about["state"].items()}
    noise = torch.rand(3, *about["noise"]["shape"], generator=torch.Generator().manual_seed(0))
    inputs = {name: torch.from_numpy(array) for name, array in {**frames, **states}.items()}
    action, _ = step(inputs, state, torch.ones(3, dtype=torch.bool), noise)
    np.testing.assert_allclose(action.detach().numpy(), policy({**frames, **states}), rtol=0, atol=1e-5)
    stacked = {"image": np.concatenate([*frames.values()], -1), **states, "reward": np.zeros(3)}
    policy.reset(seed=0)
    np.testing.assert_allclose(policy(stacked), action.detach().numpy(), rtol=0, atol=1e-5)
    source = load_policy(whole, "source")
    assert list(source.cameras) == ["0", "back"] and source(stacked).shape == (3, 6)


def untrained(channels: int, state: dict[str, int], data: dict | None = None, method: str = "coworld") -> PixelPolicy:
    torch.manual_seed(0)
    config = tiny(size="32,32", method=method, dyn_discrete=0)
    names = {"target": 3} if method == "bc" else {"source": 2, "target": 3}
    senses = dict.fromkeys(names, Senses(channels, state))
    agent = METHODS[method].agents(AgentBuilder(config, torch.device("cpu"), names, senses))["target"]
    return PixelPolicy(agent, data=data)


NAMED = {"cameras": {"obs.front": [40, 30, 3], "obs.wrist": [24, 24, 1]}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "state", "data", "method"),
    [
        (6, {"obs.state": 4}, NAMED, "coworld"),
        (3, {"qpos": 2}, None, "coworld"),
        (6, {}, NAMED, "bc"),
    ],
)
def test_programs_and_models_take_observations_by_name(channels: int, state: dict, data: dict | None, method: str):
    """The cameras' images are resized inside, each from its own size; one is grey."""
    policy = untrained(channels, state, data, method)
    about, exported = describe(policy), export_program(policy)
    assert largest_difference(to_bytes(exported, about), policy) <= export.TOLERANCE
    if all(map(have, NEEDS)):
        file = to_onnx(exported, about)
        assert largest_onnx_difference(file, policy, None) <= export.TOLERANCE
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs() if entry.name.startswith("observation_")]
        assert names == [f"observation_{name}" for name in about["observation"]]


def have(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True


def test_observations_that_a_policy_refuses():
    policy = untrained(6, {"qpos": 2}, NAMED)
    image, qpos = np.zeros((40, 30, 3), np.uint8), np.zeros(2)
    whole = {"obs.front": image, "obs.wrist": image[..., 0], "qpos": qpos}
    assert policy(whole).shape == (3,)
    for wrong, message in (
        (image, "the agent observes states too; give a dict with obs.front, obs.wrist, qpos"),
        ({"obs.front": image, "qpos": qpos}, "no obs.wrist in the observation"),
        ({**whole, "qpos": np.zeros(3)}, "qpos has shape (3,); give 1 x 2 finite numbers"),
        ({**whole, "qpos": np.full(2, np.nan)}, "finite"),
        ({"image": image, "qpos": qpos}, "images have shape (40, 30, 3); give (H, W, 6), (N, H, W, 6)"),
        ({**whole, "obs.front": np.zeros((2, 40, 30, 3), np.uint8)}, "differ in number"),
        ({"obs.front": image, "obs.wrist": image}, "no qpos in the observation"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            policy(wrong)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dmc_camera", "0"], "with camera side,back, evaluation would use side: give --dmc_camera side,back"),
        ([*CAMERAS, "--state_keys", "heigth"], "no array 'heigth' (--state_keys); there are: height, "),
        ([*SENSES, "--source_state_keys", "hight"], "dmc_walker_walk observes no state 'hight'; there are: height, "),
        ([*SENSES, "--source_state_keys", "velocity"], "give --source_state_keys none, the same states, or --rew"),
        ([*SENSES, "--method", "bc"], "--state_keys has no effect with method bc"),
        ([*CAMERAS, "--state_embed", "8"], "--state_embed has no effect without state_keys"),
        ([*SENSES[:4], "--source_observation", "state"], "a source on states alone has no image"),
        ([*SENSES[:4], "--source_state_keys", "none", "--method", "dv2_finetune"], "which need the same states"),
        ([*SENSES[:4], "--metaworld_camera", "topview"], "--metaworld_camera has no effect"),
    ],
)  # fmt: skip
def test_runs_that_are_refused(flags: list[str], message: str, walker: Path, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as stopped:
        exit_on_bad_input(lambda: program.main(co_training(walker, tmp_path, *SMALL, *flags)))
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("note", "precision"))]
    assert stopped.value.code == 2 and message in lines[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_source_without_states_aligns_images_alone(walker: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """And reward alignment and the bound in the source's latents read the target's images alone."""
    more = "--source_state_keys", "none", "--constraint_latents", "source", "--video_every", "0"
    short = "--rounds", "1", "--warmup_steps", "10", "--eval_episodes", "1"
    train(walker, tmp_path, *SENSES, *more, *short)
    assert "state alignment with source: of the image part alone of the embeddings" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoint.pt")["states"] == {"source": {}, "target": STATES}


SPACE, IMAGE = '"camera": Box(0, 255, (8, 8, 3), np.uint8),', '"camera": camera,'
TWO_CAMERAS = OUTSIDE.replace(SPACE, f'{SPACE} "wrist": Box(0, 255, (6, 6), np.uint8),')
TWO_CAMERAS = TWO_CAMERAS.replace(IMAGE, f'{IMAGE} "wrist": camera[:6, :6, 0],')


@pytest.fixture
def arm_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "arm_package.py").write_text(TWO_CAMERAS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = dict(gymnasium.registry)
    yield
    sys.modules.pop("arm_package", None)
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.mark.usefixtures("arm_package")
def test_a_gymnasium_environment_with_images_among_its_observations(tmp_path: Path):
    env = make_env("gym_arm_package:MyEnv-v0", size=16, camera="camera,wrist")
    observation = env.reset(seed=0)[0]
    assert observation["image"].shape == (16, 16, 6) and observation["dot.x"].shape == (1,)
    env.close()
    blind = make_env("gym_arm_package:NoMode-v0", size=16, camera="wrist")  # it has no render_mode
    assert blind.reset(seed=0)[0]["image"].shape == (16, 16, 3)
    blind.close()
    with pytest.raises(BadInput, match="observes no images 'wirst'; there are: camera, wrist"):
        make_env("gym_arm_package:MyEnv-v0", size=16, camera="camera,wirst")


@pytest.mark.slow
@pytest.mark.usefixtures("arm_package")
def test_a_run_of_a_gymnasium_environment_with_nested_state_names(tmp_path: Path):
    """In processes of their own, from collecting to evaluating."""
    flags = ["--gym_camera", "camera,wrist", "--size", "16,16", "--configs", "defaults", "debug"]
    task, data, run = "gym_arm_package:MyEnv-v0", str(tmp_path / "data"), str(tmp_path / "run")
    steps = [
        ["collect.py", "--task", task, "--out", data, "--episodes", "4", *flags],
        ["co_training.py", "--source_task", task, "--target_task", task, "--offline_traindir", data, "--logdir", run,
         "--state_keys", "dot.x,dot.y", *flags],
        ["evaluate.py", "--logdir", run, "--episodes", "2"],
    ]  # fmt: skip
    for arguments in steps:
        done: subprocess.CompletedProcess = command(*arguments)
        assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["states"]["target"] == {"dot.x": 1, "dot.y": 1}


def test_pictures_of_two_cameras(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (2, 7, 16, 16, 6), np.uint8)
    named = open_loop_video(images, images, side=16, cameras=["a.front", "wrist"])
    assert named.shape == (7, 2 * 18 + 3 * 18, 66 + 2 * (2 * 16 + 2), 3)
    np.testing.assert_array_equal(named[0][36 : 36 + 16, 66 : 66 + 16], images[0, 0, ..., :3])
    np.testing.assert_array_equal(named[0][36 : 36 + 16, 66 + 16 : 66 + 32], images[0, 0, ..., 3:])
    assert not (named[0][18:36, 66:] == 255).all(), "the names"
    prediction_sheet({"target": (images[0], images[0])}, 5, tmp_path / "sheet.png", {"target": ["front", "wrist"]})
    assert (tmp_path / "sheet.png").stat().st_size > 1000
