"""The model-free methods and LOMPO on the command line: bad input, notes, image sizes, short episodes."""

import re
from pathlib import Path

import numpy as np
import pytest
from test_bad_input import refused
from test_replay import fill, make_episode

import co_training as program
import collect
from replay import save_episode
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

CONFIGS = ("--configs", "defaults", "dmc", "debug")


def arguments(method: str, data: Path, logdir: Path, *more: object) -> list[str]:
    flags = ("--method", method, "--target_task", "my_robot", "--offline_traindir", data, "--logdir", logdir)
    return [str(a) for a in (*flags, *more, *(() if "--configs" in more else CONFIGS))]


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("drqbc", [], "method 'drqbc' is unknown; nearest: drq_bc"),
        ("drq_bc", ["--nstep", 0], "nstep: '0' (the command line) is not 1 or more"),
        ("drq_bc", ["--transitions", 0], "transitions: '0'"),
        ("drq_bc", ["--target_tau", 2], "is not between 0 and 1"),
        ("drq_bc", ["--noise_clip", -1], "is not 0 or more"),
        ("drq_bc", ["--grad_accum", 2], "--grad_accum has no effect with method drq_bc"),
        ("curl", ["--initial_temperature", 0], "initial_temperature: '0' (the command line) is not above 0"),
        (
            "curl",
            ["--size", "16,16"],
            "encoder of method curl gets 14 pixels of these images, and needs 15; give",
        ),
        ("lompo", ["--grad_accum", 9], "grad_accum 9 is more parts than a batch"),
        ("cql", ["--configs", "defaults", "drq_bc", "debug"], "--configs drq_bc: the block of another method than cql"),
        ("coworld", ["--source_task", "walker_walk", "--configs", "defaults", "lompo", "debug"], "--method lompo, wh"),
    ],
)
def test_bad_flags(method: str, flags: list, message: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    fill(tmp_path / "data", [12, 9], size=32)
    assert message in refused(program.main, arguments(method, tmp_path / "data", tmp_path / "run", *flags), capsys)
    assert not (tmp_path / "run").exists()


def test_the_block_of_a_method_is_refused_in_a_collection(tmp_path: Path, capsys: pytest.CaptureFixture):
    flags = ["--task", "walker_downhill", "--out", tmp_path / "data", "--configs", "defaults", "dmc", "drq_bc"]
    assert "--configs drq_bc: the block of a method of co_training.py" in refused(collect.main, flags, capsys)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("method", ["bc", "drq_bc"])
def test_episodes_of_one_step_are_learned_from(method: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    fill(tmp_path / "data", [3, 2, 2], size=32)
    program.main(arguments(method, tmp_path / "data", tmp_path / "run", "--rounds", 1, "--warmup_updates", 1))
    errors = capsys.readouterr().err
    assert ("value figures" in errors) == (method == "drq_bc")  # bc has no critic
    short = re.search(
        r"note: target: (\d) of 2 episodes .* shorter than 3 steps \(nstep\) .* every row is used", errors
    )
    assert (short and short[1]) == ("2" if method == "drq_bc" else None)


def test_stored_discounts_need_no_flag_without_a_world_model(tmp_path: Path, capsys: pytest.CaptureFixture):
    for number in range(3):
        episode = {**make_episode(12, number, size=32), "discount": np.array([1.0] * 11 + [0], np.float32)}
        save_episode(tmp_path / "data", episode, id=f"{number:04d}")
    for method, noted in (("drq_bc", False), ("lompo", True)):
        program.main(arguments(method, tmp_path / "data", tmp_path / method, "--rounds", 0, "--warmup_updates", 1))
        assert ("--pred_discount True" in capsys.readouterr().err) == noted


@pytest.mark.parametrize(("size", "used"), [(8, 18), (40, 40)])
def test_images_become_as_small_as_those_of_the_data(size: int, used: int, tmp_path: Path, capsys):
    fill(tmp_path / "data", [12, 9], size=size)
    program.main(arguments("curl", tmp_path / "data", tmp_path / "run", "--rounds", 0, "--warmup_updates", 1))
    assert f"note: images of {used}x{used} instead of 84x84: the dataset has {size}x{size}" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["config"]["size"] == [used, used]
