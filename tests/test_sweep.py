"""Specs of sweeps: reading, the runs and jobs that they stand for, and what is refused before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, command

import collect
import sweep
from config import to_yaml
from sweeping import estimate
from sweeping.cluster import Cluster
from sweeping.jobs import DATA, PRETRAINING, RUN, Checks, is_finished, make_jobs, planned_runs
from sweeping.scheduler import Scheduler, State
from sweeping.spec import expand, parse_pair, read_spec
from tools import BadInput
from training.methods import METHODS
from wrappers import Task

CHECKS = Checks(sweep.check_run, sweep.check_collection)
LEADER = "source_from=coworld-{pair}-seed{seed}"
SPEC = """
configs: [dmc, debug]
collect: {quality: random, episodes: 2}
data: DATA/{target}
grid:
  pair: [walker_walk -> walker_downhill]
  method: [coworld, offline_dv2]
  seed: [0]
"""


def write_spec(folder: Path, text: str = SPEC) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text.replace("DATA", str(folder / "data")))
    return path


def jobs_of(folder: Path, *changes: str, text: str = SPEC) -> list:
    spec, out = read_spec(write_spec(folder, text), changes), folder / "out"
    return make_jobs(spec, planned_runs(spec, expand(spec), out, CHECKS), out, CHECKS)


# Runs


def test_a_grid_is_every_combination_once(tmp_path: Path):
    spec = read_spec(write_spec(tmp_path), ["seed=[0,1]", "state_alignment=[True,False]"])
    names = [run.name for run in expand(spec)]
    pair = "dmc_walker_walk-to-dmc_walker_downhill"
    assert names == [
        f"coworld-{pair}-seed0",
        f"coworld-{pair}-state_alignment=False-seed0",
        f"coworld-{pair}-seed1",
        f"coworld-{pair}-state_alignment=False-seed1",
        "offline_dv2-dmc_walker_downhill-seed0",  # the setting has no effect on it
        "offline_dv2-dmc_walker_downhill-seed1",
    ]


def test_a_default_value_does_not_change_names(tmp_path: Path):
    plain, varied = (
        {run.name for run in expand(read_spec(write_spec(tmp_path), changes))}
        for changes in ([], ["units=[16, 24]"])  # 16 is the block's
    )
    assert plain < varied


def test_runs_beside_the_grid(tmp_path: Path):
    text = SPEC + "runs:\n  - {pair: 'walker_walk, cheetah_run -> walker_uphill', seed: [3, 4]}\n"
    runs = expand(read_spec(write_spec(tmp_path, text)))
    assert [run.seed for run in runs] == [0, 0, 3, 4]
    assert runs[-1].sources == (Task("dmc", "walker_walk"), Task("dmc", "cheetah_run"))


def test_long_names_are_cut_and_differ(tmp_path: Path):
    values = ["units=[17, 18]", "dyn_deter=[31, 32]", "dyn_hidden=33", "cnn_depth=3", "batch_length=7", "dyn_stoch=5"]
    names = [run.name for run in expand(read_spec(write_spec(tmp_path), [*values, "imag_horizon=5", "prefill=30"]))]
    assert max(map(len, names)) < 170 and len(set(names)) == 8


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_project_s_own_specs(path: Path, tmp_path: Path):
    spec = read_spec(path)
    planned = planned_runs(spec, expand(spec), tmp_path, CHECKS)
    assert len(planned) >= 12
    assert len({p.run.name for p in planned}) == len(planned)


# Jobs


def test_datasets_come_first_and_leaders_are_pretrained_once(tmp_path: Path):
    methods = "method=[coworld, dv2_finetune, offline_dv2, multitask_dv2]"  # the last two have no pretraining
    jobs = {job.name: job for job in jobs_of(tmp_path, methods, "seed=[0,1]", LEADER)}
    assert [job.kind for job in jobs.values()] == [DATA] + [PRETRAINING] * 2 + [RUN] * 8
    leader = "coworld-dmc_walker_walk-to-dmc_walker_downhill-seed1"
    follower = jobs["dv2_finetune-dmc_walker_walk-to-dmc_walker_downhill-seed1"]
    data = f"{DATA} {tmp_path}/data/walker_downhill"
    assert follower.needs == (data, f"{PRETRAINING} {leader}")
    assert follower.command[follower.command.index("--source_from") + 1] == f"{tmp_path}/out/{leader}"
    assert "--pretrain_only" in jobs[f"{PRETRAINING} {leader}"].command
    for name in ("offline_dv2-dmc_walker_downhill-seed1", leader.replace("coworld", "multitask_dv2")):
        assert jobs[name].needs == (data,) and "--source_from" not in jobs[name].command


def test_one_source_can_serve_all_seeds(tmp_path: Path):
    one = "source_from=dv2_finetune-{pair}-seed1"
    jobs = jobs_of(tmp_path, one, "method=[dv2_finetune, coworld]", "seed=[1,0]")
    assert [job.kind for job in jobs].count(PRETRAINING) == 1
    leader = "dv2_finetune-dmc_walker_walk-to-dmc_walker_downhill-seed1"
    begun = [job.command[job.command.index("--source_from") + 1] for job in jobs if "--source_from" in job.command]
    assert begun == [f"{tmp_path}/out/{leader}"] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["units=[16,24]"], "-units=24-seed0: source_from coworld-PAIR-seed0: it is pretrained with units 16, not 24"),
        (["pretrain_steps=[20,30]"], "it is pretrained with pretrain_steps 20, not 30"),
        (["source_from=coworld-{pear}-seed0"], "source_from: {pear} is neither pair nor a setting; nearest: pair"),
        (["source_from=cowrld-{pair}-seed0"], "the sweep has no such run; nearest: coworld-PAIR-seed0"),
        (["source_from=dv2_finetune-{pair}-seed{seed}"], "the sweep has no such run"),
        (["runs=[{pair: walker_walk -> walker_uphill, "
          "source_from: 'coworld-dmc_walker_walk-to-dmc_walker_downhill-seed0'}, {pair: walker_walk -> walker_nofoot, "
          "source_from: 'coworld-dmc_walker_walk-to-dmc_walker_uphill-seed0'}]"], "itself; give coworld-PAIR-seed0"),
    ],
)  # fmt: skip
def test_a_leader_with_another_pretraining_is_refused(tmp_path: Path, changes: list[str], message: str):
    changes = ["method=coworld", "source_from=coworld-{pair}-seed0", *changes]
    with pytest.raises(BadInput) as error:
        jobs_of(tmp_path, *changes)
    assert message.replace("PAIR", "dmc_walker_walk-to-dmc_walker_downhill") in str(error.value)


def test_a_leader_with_networks_of_other_sizes_is_refused(tmp_path: Path):
    """Fine-tuning builds both agents for the larger action size, that of walker_downhill: 6, cartpole_swingup: 1."""
    pair = "pair=cartpole_swingup -> walker_downhill"
    with pytest.raises(BadInput, match="it is pretrained with networks of other sizes"):
        jobs_of(tmp_path, pair, LEADER, "method=[coworld, dv2_finetune]")


def test_a_run_that_has_begun_keeps_its_own_pretraining(tmp_path: Path):
    run = tmp_path / "out" / "dv2_finetune-dmc_walker_walk-to-dmc_walker_downhill-seed0"
    run.mkdir(parents=True)
    (run / "checkpoint.pt").touch()
    jobs = jobs_of(tmp_path, "method=[coworld, dv2_finetune]", LEADER)
    assert [job.kind for job in jobs] == [DATA, RUN, RUN] and not any("--source_from" in job.command for job in jobs)


def test_the_plan_says_what_missing_leaders_cost(tmp_path: Path):
    """`debug`: 2 + 20/5 updates and 26 + 20 agent steps of pretraining."""

    def plan(*changes: str) -> list[str]:
        spec, out = read_spec(write_spec(tmp_path), ["method=[coworld, dv2_finetune]", *changes]), tmp_path / "out"
        planned = planned_runs(spec, expand(spec), out, CHECKS)
        return estimate.plan_text(planned, make_jobs(spec, planned, out, CHECKS), 1).splitlines()

    lines = plan("state_alignment=[True,False]", "seed=[0,1]")
    at = lines.index("4 runs repeat the pretraining of another: 24 updates, 184 agent steps. To avoid it:")
    pair = "dmc_walker_walk-to-dmc_walker_downhill"
    for line, seed in zip(lines[at + 1 : at + 3], (0, 1), strict=True):
        assert line == (
            f"  source_from: coworld-{pair}-seed{seed} for coworld-{pair}-state_alignment=False-seed{seed} and 1 more"
        )
    assert not any("repeat" in line for line in plan(LEADER))
    assert not any("repeat" in line for line in plan("pair=cartpole_swingup -> walker_downhill"))  # networks differ


def test_a_dataset_that_exists_is_not_collected(tmp_path: Path):
    folder = tmp_path / "data" / "walker_downhill"
    folder.mkdir(parents=True)
    assert {job.kind for job in jobs_of(tmp_path, "method=offline_dv2")} == {DATA, RUN}  # it is empty
    (folder / "episode.npz").touch()
    assert {job.kind for job in jobs_of(tmp_path, "method=offline_dv2")} == {RUN}


def test_settings_in_the_name_of_a_dataset_are_those_it_is_collected_with(tmp_path: Path):
    text = SPEC.replace("DATA/{target}", "DATA/{target}/{seed}-{size}")
    jobs = jobs_of(tmp_path, "method=offline_dv2", "seed=[4,5]", "size=[32,32]", text=text)
    data = [job for job in jobs if job.kind == DATA]
    assert [job.command[job.command.index("--seed") + 1] for job in data] == ["4", "5"]
    assert all("--size 32,32" in " ".join(job.command) for job in data)
    assert len({job.folder for job in data}) == 2 and str(data[0].output).endswith("/walker_downhill/4-32,32")


def test_what_another_sweep_made_is_not_made_again(tmp_path: Path):
    job = jobs_of(tmp_path, "method=offline_dv2")[0]
    job.output.mkdir(parents=True)
    (job.output / "episode.npz").touch()
    scheduler = Scheduler([job], Cluster({"cpus": 1, "gpus": 0}), 0, tmp_path / "stop")
    scheduler.step()
    assert scheduler.progress[job.name].state == State.DONE


def test_a_finished_run_lends_its_pretraining(tmp_path: Path):
    """When a spec grows, the new runs begin from the snapshot of a run that is done."""
    run = tmp_path / "out" / "coworld-dmc_walker_walk-to-dmc_walker_downhill-seed0"
    (run / "pretrained").mkdir(parents=True)
    for name in ("checkpoint.pt", "pretrained/checkpoint.pt"):
        (run / name).touch()
    jobs = {job.name: job for job in jobs_of(tmp_path, "method=[dv2_finetune, coworld]", LEADER)}
    assert PRETRAINING not in {job.kind for job in jobs.values()}
    assert "--source_from" in jobs["dv2_finetune-dmc_walker_walk-to-dmc_walker_downhill-seed0"].command


def test_updates_of_the_plan_are_those_of_the_runs(tmp_path: Path):
    """Shared pretraining is counted once. `debug`: 2 + 20/5 alone; 15/5 + 20/5 more online; 4 + 2 * 20/5 offline."""
    spec, out = read_spec(write_spec(tmp_path), ["method=[coworld, dv2_finetune]", LEADER]), tmp_path / "out"
    planned = planned_runs(spec, expand(spec), out, CHECKS)
    found = {job.name: estimate.updates_of(job, planned[0]) for job in make_jobs(spec, planned, out, CHECKS)[1:]}
    assert list(found.values()) == [6, 19, 19]


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_finished_run_is_done_unless_its_spec_is_longer(tmp_path: Path, precision: str):
    changes = ["method=offline_dv2", f"precision={precision}"]
    spec, out = read_spec(write_spec(tmp_path), changes), tmp_path / "out"
    (planned,) = planned_runs(spec, expand(spec), out, CHECKS)
    run = out / planned.run.name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(planned.config.replace(precision="float32")))
    (run / "status.json").write_text('{"finished": true}')
    assert is_finished(run, planned)
    longer = replace(planned, config=planned.config.replace(rounds=3))
    assert not is_finished(run, longer)


# Bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grids: {}", "unknown key 'grids'; nearest: grid"),
        ("grid: {}", "has no runs"),
        ("grid: {pair: walker_walk -> walker_downhill, seed: []}", "seed has no values"),
        ("grid: {method: coworld}", "a run has no `pair`"),
        ("grid: {pair: walker_walk}", "write it as SOURCE -> TARGET"),
        ("grid: {pair: walker_walk -> walker_downhil}", "dmc_walker_downhill"),
        ("grid: {pair: walker_walk -> walker_downhill, method: cowrld}", "nearest: coworld"),
        ("grid: {pair: walker_walk -> walker_downhill, unitz: 3}", "nearest: units"),
        ("grid: {pair: walker_walk -> walker_downhill, units: x}", "units: 'x' (the spec) is not a whole number"),
        ("grid: {pair: walker_walk -> walker_downhill, seed: -1}", "seed -1"),
        ("grid: {source_task: walker_walk}", "source_task is given by pair"),
        ("grid: {pair: walker_walk -> walker_downhill}", "needs a dataset: give `data`"),
        ("{data: nowhere, grid: {pair: walker_walk -> walker_downhill}}", "nowhere does not exist; give `collect`"),
        ("{data: 'x/{tagret}', grid: {pair: walker_walk -> walker_downhill}}", "{tagret} is neither target"),
        ("{data: 'x/{seed', grid: {pair: walker_walk -> walker_downhill}}", "does not exist; give `collect`"),
        ("{data: 'x/{method}', grid: {pair: walker_walk -> walker_downhill}}", "{method} is neither target"),
        ("{data: SPEC, grid: {pair: walker_walk -> walker_downhill}}", "is not a folder"),
        ("{data: x, collect: {task: walker_run}}", "task is given by the sweep"),
        ("{data: x, collect: {help: 1}}", "help is given by the sweep"),
        ("{data: x, collect: {configs: 3}}", "collect: configs: no block '3'"),
        ("report: {by: unitz}", "nearest: units"),
        ("grid: {pair: walker_walk -> walker_downhill, size: [32, 32, 32]}", "is not a list of 2"),
        ("grid: {pair: walker_walk -> walker_downhill, size: 64}", "is not a list of 2"),
        ("configs: dmcc", "nearest: dmc"),
        ("resources: {gpu: 1}", "nearest: gpus"),
        ("resources: {cpus: 0.00001}", "is too small"),
        ("resources: {cpus: -1}", "is not a number, 0 or more"),
        ("retries: x", "is not a whole number"),
        ("share_pretraining: True", "unknown key 'share_pretraining'"),
        ("{data: x, configs: [dmc, debug], collect: {qualty: random}, grid: {pair: walker_walk -> walker_downhill}}",
         "unknown argument '--qualty'"),
        ("{data: x, configs: [dmc, debug], collect: {policy: checkpoint}, grid: {pair: walker_walk -> walker_run}}",
         "--checkpoint is missing"),
        ("just text", "is not a spec"),
        ("grid: [", "cannot be read"),
    ],
)  # fmt: skip
def test_bad_specs_are_refused_before_anything_starts(tmp_path: Path, text: str, message: str):
    path = write_spec(tmp_path, text.replace("SPEC", str(tmp_path / "spec.yaml")))
    with pytest.raises(BadInput) as error:
        sweep.main([str(path), "--out", str(tmp_path / "out"), "--dry_run"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "seed"], "write KEY=VALUE"),
        (["--set", "units=[a"], "is not a value of YAML"),
        (["--seconds_per_update", "1"], "has no effect without --dry_run"),
        (["--seconds_per_update", "-1", "--dry_run"], "give a positive number"),
        (["--out", "README.md/x"], "is not a folder, or is below a file"),
        (["--set", "report={max_score: abc}"], "give a positive return"),
        (["--address", "nowhere"], "give auto, or HOST:PORT"),
        (["--address", "127.0.0.1:9"], "nothing answers there"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], message: str):
    with pytest.raises(BadInput, match=message):
        sweep.main([str(write_spec(tmp_path)), "--out", str(tmp_path / "out"), *arguments])  # the last --out counts
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_machine_without_gpus_is_one_line(tmp_path: Path):
    done = command("sweep.py", write_spec(tmp_path), "--out", tmp_path / "out", "--set", "resources.gpus=64")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: resources: a run needs 64 gpus") and done.stderr.count("\n") == 1


def test_a_target_without_a_simulator_needs_its_dataset(tmp_path: Path):
    assert parse_pair("walker_walk -> my_robot") == ((Task("dmc", "walker_walk"),), Task("", "my_robot"))
    with pytest.raises(BadInput, match="unknown task 'my_robot'"):
        parse_pair("my_robot -> walker_walk")
    text = SPEC.replace("walker_downhill", "my_robot")
    with pytest.raises(BadInput, match=r"my_robot does not exist, and my_robot has no simulator to collect it in"):
        jobs_of(tmp_path, text=text)
    (tmp_path / "data" / "my_robot").mkdir(parents=True)
    (tmp_path / "data" / "my_robot" / "episode.npz").touch()
    (run,) = jobs_of(tmp_path, "method=offline_dv2", text=text)
    assert run.kind == RUN and run.name == "offline_dv2-my_robot-seed0"
    assert run.command[run.command.index("--target_task") + 1] == "my_robot"


def test_an_update_of_every_method_can_be_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("training.estimate.REPEATS", 1)
    spec = read_spec(write_spec(tmp_path), [f"method=[{','.join(METHODS)}]"])
    planned = planned_runs(spec, expand(spec), tmp_path / "out", CHECKS)
    assert {p.run.method for p in planned} == set(METHODS)
    assert all(estimate.seconds_per_update(p) > 0 for p in planned)


def test_a_finished_model_free_run_is_done_with_the_size_of_its_data(tmp_path: Path):
    spec, out = read_spec(write_spec(tmp_path), ["method=bc"]), tmp_path / "out"
    (planned,) = planned_runs(spec, expand(spec), out, CHECKS)
    run, size = out / planned.run.name, planned.config.size[0]
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"finished": true}')
    for side, done in ((size - 1, True), (size, True), (size + 1, False)):
        (run / "config.yaml").write_text(to_yaml(planned.config.replace(size=[side, side])))
        assert is_finished(run, planned) == done


def test_a_dataset_that_only_finished_runs_used_is_not_collected_again(tmp_path: Path):
    spec, out = read_spec(write_spec(tmp_path), ["method=offline_dv2"]), tmp_path / "out"
    (planned,) = planned_runs(spec, expand(spec), out, CHECKS)
    run = out / planned.run.name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(planned.config))
    (run / "status.json").write_text('{"finished": true}')
    assert [job.kind for job in jobs_of(tmp_path, "method=offline_dv2")] == [RUN]


def test_a_home_folder_in_data_is_where_the_dataset_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = SPEC.replace("DATA/", "~/data/")
    (data,) = (job for job in jobs_of(tmp_path, "method=offline_dv2", text=text) if job.kind == DATA)
    arguments = collect.command().parse_known_args(list(data.command[1:]))[0]
    assert arguments.out == data.output == tmp_path / "data" / "walker_downhill"
