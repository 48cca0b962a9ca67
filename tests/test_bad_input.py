"""Bad input to the commands: one line on stderr, exit status 2, and no file is changed."""

import ast
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, co_training, command, tiny
from test_layout import COMMANDS

import co_training as program
import collect
import config as settings
import evaluate
import tools
from tools import exit_on_bad_input
from training.checkpoint import load_checkpoint
from training.methods import METHODS

pytestmark = pytest.mark.usefixtures("no_pictures")

SHORT = ["--pretrain_steps", 5, "--warmup_rounds", 0, "--rounds", 1, "--video_every", 0, "--envs", 0]


def refused(main, arguments: list[object], capsys: pytest.CaptureFixture) -> str:
    """The error line of a command that must exit with status 2."""
    with pytest.raises(SystemExit) as stopped:
        exit_on_bad_input(lambda: main([str(a) for a in arguments]))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source_task", "walker_wlak"], "nearest: walker_walk"),
        (["--target_task", "walker_downhil"], "nearest: walker_downhill"),
        (["--target_task", "", "--method", "online_dv2"], "--target_task is missing"),
        (["--target_task", "cheetah_run", "--offline_traindir", "nowhere"], "collect.py --task TASK --out nowhere"),
        (["--device", "tpu"], "tpu"),
        (["--method", "coworl"], "nearest: coworld"),
        (["--device", "cuda:99"], "GPU"),
        (["--device", "mps"], "device 'mps' is not supported; give auto, cpu or cuda"),
        (["--action_noise", "0.1"], "--action_noise has no effect in co_training.py; remove it"),
        (["--eval_every", "7"], "--eval_every has no effect in co_training.py; remove it"),
        (["--source_observation", "state", "--grad_accum", "2"], "give --grad_accum 1"),
        (["--prefill", "3"], "prefill 3 is shorter than an episode"),
        (["--envs", "3"], "of each of 3 simulators"),
        (["--envs", "100000"], "processor cores"),
        (["--sample_ends", "often"], "sample_ends: 'often' (the command line) is not one of auto, on, off"),
        (["--target_task", "cartpole_swingup"], "dimensions"),
        (["--logdir", "configs.yaml/run"], "configs.yaml/run"),
    ],
)
def test_bad_flags_of_co_training(
    flags: list[str], message: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert message in refused(program.main, [*co_training(dataset, tmp_path / "run"), *flags], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "flags", "where"),
    [
        ("coworld", "--ensemble 3", "with method coworld"),
        ("coworld", "--ewc_scale 1000", "with method coworld"),  # the default value too
        ("dv2_finetune", "--ewc_batches 3", "with method dv2_finetune"),
        ("dv2_finetune", "--select first", "with method dv2_finetune"),
        ("multitask_dv2", "--value_constraint off", "with method multitask_dv2"),
        ("online_dv2", "--dataset_cache folder", "with method online_dv2"),
        ("online_dv2", "--image_key rgb", "with method online_dv2"),
        ("online_dv2", "--action_range -5,3", "with method online_dv2"),
        ("online_dv2", "--sparse_reward True", "with method online_dv2"),
        ("offline_dv2", "--state_alignment False", "with method offline_dv2"),
        ("offline_dv2", "--eta_end 0.2", "with method offline_dv2"),
        ("offline_dv2", "--sparse_reward True", "with method offline_dv2"),
        ("offline_dv2", "--source_observation state", "with method offline_dv2"),
        ("offline_dv2", "--prefill 100", "with method offline_dv2"),
        ("offline_dv2", "--replay_size 9000", "with method offline_dv2"),
        ("offline_dv2", "--metaworld_flip False --source_task door-close", "without a Meta-World task"),
        ("coworld", "--state_alignment_scale 2 --state_alignment False", "without state_alignment"),
        ("coworld", "--value_constraint_scale 2 --value_constraint off", "without value_constraint"),
        ("coworld", "--actor_grad_mix 0.2", "without actor_grad both"),
        ("coworld", "--warmup_updates 9 --warmup_rounds 0", "without warmup_rounds"),
        ("coworld", "--source_iterations 9 --rounds 1", "without a second round"),
        ("coworld", "--metaworld_camera nonsense", "without a Meta-World task"),
        ("coworld", "--robodesk_action_repeat 2", "without a RoboDesk task"),
    ],
)
def test_flags_without_effect_are_refused(method: str, flags: str, where: str, tmp_path: Path, capsys):
    """Values of blocks are not refused: `debug` has several that most methods do not use."""
    arguments = co_training(tmp_path / "none", tmp_path / "run", "--method", method, *flags.split())
    line = refused(program.main, arguments, capsys)
    assert line.endswith(f"{flags.split()[0]} has no effect {where}; remove it")


@pytest.mark.parametrize(
    ("method", "flag"),
    [("online_dv2", "--offline_traindir"), ("offline_dv2", "--envs"), ("offline_dv2", "--pretrain_steps")],
)
def test_flags_that_other_tests_leave_out_are_refused(method: str, flag: str, tmp_path: Path, capsys):
    arguments = [*co_training(tmp_path, tmp_path / "run", "--method", method), flag, "3"]
    assert f"{flag} has no effect with method {method}; remove it" in refused(program.main, arguments, capsys)


def test_the_settings_that_methods_name_are_settings():
    known = vars(tiny()).keys()
    assert {key for method in METHODS.values() for key in method.settings.split()} <= known


@pytest.mark.parametrize(
    ("policy", "flags", "message"),
    [
        ("random", ["--model_lr", 1e-3], "--model_lr has no effect with --policy random"),
        ("random", ["--prefill", 100], "--prefill has no effect with --policy random"),
        ("random", ["--robodesk_action_repeat", 2], "--robodesk_action_repeat has no effect without a RoboDesk task"),
        ("checkpoint", ["--eval_every", 3], "--eval_every has no effect with --policy checkpoint"),
        ("dreamer", ["--rounds", 3], "--rounds has no effect in collect.py"),
        ("dreamer", ["--ensemble", 3], "--ensemble has no effect in collect.py"),
        ("dreamer", ["--state_alignment", False], "--state_alignment has no effect in collect.py"),
    ],
)  # fmt: skip
def test_flags_without_effect_on_a_collection(policy: str, flags: list, message: str, tmp_path: Path, capsys):
    arguments = ["--task", "walker_walk", "--out", tmp_path / "out", "--policy", policy, *flags]
    assert message in refused(collect.main, arguments, capsys)


def test_ctrl_c_during_the_imports_prints_one_line(tmp_path: Path):
    """Of every command: the next test shows that they all begin alike."""
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")
    result = command("co_training.py", "--help", PYTHONPATH=str(tmp_path))
    assert (result.stdout, result.stderr) == ("", "interrupted\n")
    assert result.returncode != 0


@pytest.mark.parametrize("name", sorted({*COMMANDS, "sweep"}))
def test_a_command_imports_the_handler_of_interrupts_first_and_ends_by_it(name: str):
    docstring, first, *_, last = ast.parse((ROOT / f"{name}.py").read_text()).body
    assert isinstance(docstring, ast.Expr) and isinstance(first, ast.ImportFrom) and first.module == "tools"
    assert "exit_on_bad_input" in {alias.name for alias in first.names}
    assert ast.unparse(last) == "if __name__ == '__main__':\n    exit_on_bad_input(main)"


def test_the_handler_of_interrupts_is_set_before_other_packages_are_imported():
    body = ast.parse((ROOT / "tools.py").read_text()).body
    (at,) = (i for i, node in enumerate(body) if ast.unparse(node).startswith("sys.excepthook ="))
    imported = [node for node in body[:at] if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name if isinstance(node, ast.Import) else node.module for node in imported for alias in node.names}
    assert names and {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_an_empty_dataset_folder(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(program.main, co_training(tmp_path / "empty", tmp_path / "run"), capsys)


def test_a_dataset_of_truncated_files(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    broken = tmp_path / "data"
    broken.mkdir()
    for path in dataset.glob("*.npz"):
        (broken / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    line = refused(program.main, co_training(broken, tmp_path / "run"), capsys)
    assert any(path.name in line for path in broken.glob("*.npz"))


def test_one_truncated_file_among_good_ones_is_named_and_left_out(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    data = tmp_path / "data"
    shutil.copytree(dataset, data, ignore=shutil.ignore_patterns(".*"))
    bad = sorted(data.glob("*.npz"))[0]
    bad.write_bytes(bad.read_bytes()[:200])
    program.main([str(a) for a in [*co_training(data, tmp_path / "run"), *SHORT, "--size", "32,32"]])
    assert bad.name in capsys.readouterr().err


def test_a_dataset_of_images_with_two_channels(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    data = tmp_path / "data"
    data.mkdir()
    with np.load(next(iter(dataset.glob("*.npz")))) as arrays:
        episode = dict(arrays)
    episode["image"] = episode["image"][..., :2]
    np.savez_compressed(data / "a-b-13.npz", **episode)
    assert "a-b-13.npz" in refused(program.main, co_training(data, tmp_path / "run"), capsys)


def _other_data(dataset: Path, folder: Path) -> Path:
    """The dataset without its first episode."""
    folder.mkdir(exist_ok=True)
    for path in sorted(dataset.glob("*.npz"))[1:]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which tests leave as it is."""
    logdir = tmp_path_factory.mktemp("runs") / "finished"
    program.main([str(a) for a in [*co_training(dataset, logdir), *SHORT, "--size", "32,32"]])
    return logdir


def test_resuming_with_other_settings_or_data_changes_nothing(
    dataset: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    arguments = [*co_training(dataset, finished), *SHORT, "--size", "32,32"]
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    for flags, message in [
        (["--dyn_deter", 24], "dyn_deter 16, not 24"),
        (["--source_task", "walker_run"], "source_task dmc_walker_walk, not dmc_walker_run"),
        (["--seed", 4], "seed 0, not 4"),
        (["--warmup_rounds", 1], "which --warmup_rounds 1 would change: give --warmup_rounds 0, or another"),
        (["--state_alignment", False], "state_alignment True, not False"),
        (["--time_limit", 13], "time_limit 12, not 13"),
        (["--offline_traindir", _other_data(dataset, tmp_path / "fewer")], "on other data"),
    ]:
        assert message in refused(program.main, [*arguments, *flags], capsys)
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_resuming_with_other_images_but_equal_returns(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    data, logdir = tmp_path / "data", tmp_path / "run"
    shutil.copytree(dataset, data, ignore=shutil.ignore_patterns(".*"))
    arguments = [str(a) for a in [*co_training(data, logdir), *SHORT, "--size", "32,32"]]
    program.main(arguments)
    path = sorted(data.glob("*.npz"))[0]
    with np.load(path) as arrays:
        episode = dict(arrays)
    episode["image"][5, 10, 10] ^= 255
    np.savez_compressed(path, **episode)
    assert "are equal, but not the images, actions or rewards" in refused(program.main, arguments, capsys)


def test_an_ablation_right_after_the_plain_run_has_its_own_directory(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    tasks = ["--source_task", "walker_walk", "--target_task", "walker_downhill", "--offline_traindir", dataset]
    arguments = [str(a) for a in [*tasks, *SHORT, "--size", "32,32", "--configs", "defaults", "metaworld", "debug"]]
    for more in ([], ["--state_alignment", "False"], []):
        program.main([*arguments, *more])
    plain, pair = "metaworld-debug-envs=0-size=32x32", "dmc_walker_walk-to-dmc_walker_downhill"
    names = {path.name for path in Path("runs").iterdir()}
    assert names == {f"{pair}-{plain}-seed0", f"{pair}-{plain}-state_alignment=False-seed0"}
    errors = capsys.readouterr().err
    assert f"runs/{pair}-{plain}-seed0 is finished" in errors
    assert errors.count("give --configs defaults dmc debug") == 3


def test_a_damaged_checkpoint_is_named(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    assert "checkpoint.pt" in refused(program.main, co_training(dataset, tmp_path), capsys)
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"PK\x03\x04 not a checkpoint"


def test_a_run_directory_that_another_process_uses(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    with tools.lock_directory(tmp_path):
        assert "another process" in refused(program.main, co_training(dataset, tmp_path), capsys)
        assert list(tmp_path.iterdir()) == [tmp_path / ".lock"]


def test_two_collections_into_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture):
    with tools.lock_directory(tmp_path / ".data.partial"):
        (tmp_path / ".data.partial" / "theirs.npz").write_bytes(b"theirs")
        line = refused(collect.main, ["--task", "walker_walk", "--out", tmp_path / "data", "--episodes", 1], capsys)
        assert "another process" in line and (tmp_path / ".data.partial" / "theirs.npz").exists()


@pytest.mark.parametrize("flag", ["--model_lr", "--value_lr"])
def test_divergence_is_reported(flag: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    flags = ["--envs", 0, "--size", "32,32", flag, 1e30]
    assert "training has diverged" in refused(program.main, [*co_training(dataset, tmp_path), *flags], capsys)


def test_an_experts_dataset_needs_the_settings_of_its_training(finished: Path, tmp_path: Path, capsys):
    arguments = ["--task", "walker_walk", "--out", tmp_path / "out", "--quality", "expert", "--checkpoint", finished]
    line = refused(collect.main, [*arguments, "--render", "full", "--envs", 0], capsys)
    assert line.endswith("give --render fast")
    line = refused(collect.main, [*arguments, "--size", "64,64", "--envs", 0], capsys)  # the default, but given
    assert line.endswith("--size 64: the agent of --checkpoint observes 32 pixels; remove it")


EXPERT = ["--task", "walker_walk", "--out", "OUT", "--quality", "expert"]


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_checkpoint_cannot_execute_code(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    torch.save({"config": Malicious()}, tmp_path / "checkpoint.pt")
    refused(lambda _: load_checkpoint(tmp_path / "checkpoint.pt"), [], capsys)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (collect.main, ["--task", "walker_fly", "--out", "OUT"], "nearest: walker_walk"),
        (collect.main, ["--task", "walker_walk", "--out", "OUT", "--episodes", 0], "--episodes 0"),
        (
            collect.main,
            ["--task", "walker_walk", "--out", "OUT", "--policy", "checkpoint"],
            "--checkpoint is missing",
        ),
        (collect.main, ["--task", "walker_walk", "--out", "OUT", "--policy", "rnd"], "'rnd'"),
        (collect.main, ["--task", "walker_walk", "--out", "FULL"], "is not empty"),
        (
            collect.main,
            ["--task", "walker_walk", "--out", "OUT", "--policy", "dreamer", "--episodes", 2],
            "prefill",
        ),
        (collect.main, ["--task", "walker_walk"], "--out"),
        (collect.main, ["--task", "walker_walk", "--out", "OUT", "--checkpoint", "OUT"], "--checkpoint has no effect"),
        (collect.main, ["--task", "walker_walk", "--out", "OUT", "--agent", "source"], "--agent has no effect"),
        (collect.main, ["--task", "walker_walk", "--out", "OUT", "--expert_steps", 5], "--expert_steps has no effect"),
        (collect.main, [*EXPERT, "--expert_steps", 0], "--expert_steps 0: give 1 or more"),
        (collect.main, [*EXPERT, "--batch_size", 8], "--batch_size has no effect with --policy sac"),
        (collect.main, [*EXPERT, "--max_score", -1], "--max_score -1.0: give a positive return"),
        (collect.main, [*EXPERT, "--task", "gym_Pendulum-v1"], "--max_score"),
        (collect.main, ["--task", "walker_walk", "--out", "OUT", "--max_score", 5], "--max_score has no effect"),
        (collect.main, ["--task", "walker_walk", "--out", "OUT", "--logdir", "OUT"], "--logdir has no effect"),
        (collect.main, ["--task", "walker_walk", "--out", "OUT", "--method", "dv2_finetune"], "--method has no effect"),
        (
            collect.main,
            ["--task", "walker_walk", "--out", "OUT", "--quality", "random", "--policy", "dreamer"],
            "--policy dreamer does not fit --quality random",
        ),
        (evaluate.main, ["--logdir", "OUT", "--device", "mps"], "device 'mps' is not supported"),
        (
            collect.main,
            ["--task", "walker_walk", "--out", "OUT", "--quality", "medium-replay", "--max_score", "nan"],
            "nan",
        ),
        (collect.main, ["--task", "walker_walk", "--out", "OUT", "--seed", "1e30"], "2147483647"),
        (evaluate.main, ["--logdir", "OUT", "--seed", "-1"], "--seed -1"),
        (evaluate.main, ["--logdir", "OUT"], "no checkpoint"),
        (evaluate.main, ["--logdir", "OUT", "--video", "a.avi"], ".gif or .mp4"),
        (evaluate.main, ["--logdir", "OUT", "--episode", 3], "--episode"),
    ],
)
def test_bad_flags_of_the_other_commands(
    main, arguments: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    places = {"OUT": tmp_path / "out", "FULL": tmp_path / "full"}
    assert message in refused(main, [places.get(a, a) for a in arguments], capsys)
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    assert not list(tmp_path.glob("out/*"))


def test_the_command_prints_one_line_and_no_traceback(tmp_path: Path):
    tasks = ["--source_task", "walker_walk", "--target_task", "walker_downhill"]
    result = command("co_training.py", *tasks, "--offline_traindir", tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")


@pytest.mark.parametrize("name", sorted({*COMMANDS, "sweep"}))
def test_a_python_without_the_packages_says_which_to_use(name: str):
    result = command("-S", f"{name}.py", "--help")  # without site-packages
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(
        r"error: \S+ has no package \w+; .*(make setup|source \S+/\.venv/bin/activate).*\n", result.stderr
    )


def test_help_lists_every_key_with_its_comment(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        program.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{key} VALUE" in shown for key in vars(tiny()) if key != "configs")
    assert "alpha" in shown and "random agent steps before the source agent learns" in " ".join(shown.split())


def test_a_path_that_is_too_long(tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["--logdir", tmp_path / ("x" * 300)]
    assert "File name too long; give another path" in refused(evaluate.main, arguments, capsys)


def test_configs_given_twice_are_joined():
    config, _ = settings.parse(program.command(), ["--configs", "defaults", "dmc", "--configs", "debug"])
    assert config.configs == ["dmc", "debug"] and config.batch_size == tiny().batch_size
