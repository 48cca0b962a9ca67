"""configs.yaml and the flags: order, types, and invalid values."""

import math
import re
from pathlib import Path

import pytest
from test_layout import sources

import config as settings
from co_training import algorithm_1
from tools import BadInput
from training.methods import METHODS
from training.resolve import resolve
from training.target_notes import block_warning
from wrappers import SUITES, Suite, parse_task


def merged(*names: str, **flags: str) -> dict:
    return settings.merge(settings.read_blocks(), list(names), flags)


def parsed(*arguments: str):
    return settings.parse(settings.parser("test"), list(arguments))[0]


def test_blocks_apply_in_order_and_flags_last():
    assert merged()["value_constraint_scale"] == 2.0
    assert merged("dmc")["value_constraint_scale"] == 1.0
    assert merged("dmc", "release")["value_constraint_scale"] == 1.5
    assert merged("release", "dmc")["value_constraint_scale"] == 1.0
    assert merged("release", "dmc", value_constraint_scale="7")["value_constraint_scale"] == 7.0


def test_every_block_merges_alone_and_with_debug():
    for block in settings.read_blocks():
        *_, earlier, name = "defaults", *reversed(block.split(" after "))
        merged(name), merged(name, "debug"), merged("dmc", name), merged("dmc", earlier, name)


def test_a_combination_is_applied_if_its_block_is_named_after_the_other():
    one, other = merged("dmc", "dreamerv3", "small"), merged("dmc", "small")
    assert (one["cnn_depth"], one["dyn_deter"]) == (8, 200)
    assert (other["cnn_depth"], other["discount"]) == (16, 0.99)
    with pytest.raises(BadInput, match="dreamerv3 would replace what small sets; name dreamerv3 first"):
        merged("dmc", "small", "dreamerv3")
    assert merged("dmc", "dreamerv3", "small", "study")["actor_entropy"] == 5e-3
    with pytest.raises(BadInput, match="no such block in"):
        merged("small after dreamerv3")


def test_every_key_has_a_comment():
    defaults = settings.read_blocks()["defaults"]
    assert [key for key in defaults if not settings.comment(defaults, key)] == []


def test_the_table_has_an_entry_for_every_setting():
    """Suites describe their own."""
    of_suites = {f"{suite.name}_{key}" for suite in SUITES.values() for key in suite.settings}
    known = settings.read_blocks()["defaults"].keys() - of_suites
    missing, extra = known - settings.SETTINGS.keys(), settings.SETTINGS.keys() - known
    assert not missing, f"config/table.py: SETTINGS has no entry for {', '.join(sorted(missing))}"
    assert not extra, f"configs.yaml: the block `defaults` has no line for {', '.join(sorted(extra))}"
    assert not settings.SETTINGS.keys() & of_suites


def test_the_facts_of_settings_are_consistent():
    defaults = settings.read_blocks()["defaults"]
    for key, setting in settings.SETTINGS.items():
        assert not setting.choices or isinstance(defaults[key], str), f"{key}: only texts have choices"
        bounded = (setting.minimum, setting.maximum, setting.above) != (0, math.inf, -math.inf)
        assert not bounded or not isinstance(defaults[key], str | bool), f"{key}: only numbers have bounds"
        settings.check(key, settings.convert(defaults[key], defaults[key]))
    with pytest.raises(ValueError, match="'weights' is not one of"):
        settings.Setting(affects="weights")


def test_every_key_is_read_somewhere():
    """Defect 11 of the release: settings that nothing reads."""
    code = "\n".join(path.read_text() for path in sources())
    of_suites = {f"{suite.name}_{key}" for suite in SUITES.values() for key in suite.settings}
    for key in settings.read_blocks()["defaults"]:
        assert f"config.{key}" in code or key in of_suites, key


def test_the_papers_values():
    dmc, metaworld, robodesk = merged("dmc"), merged("metaworld"), merged("robodesk")
    ties = ("state_alignment_scale", "target_informed_factor", "value_constraint_scale", "target_iterations")
    assert [dmc[k] for k in ties] == [1.5, 0.9, 1.0, 20_000]
    assert [metaworld[k] for k in ties] == [robodesk[k] for k in ties] == [1.0, 0.3, 2.0, 50_000]
    assert (
        dmc["batch_size"],
        dmc["batch_length"],
        dmc["dyn_stoch"],
        dmc["dyn_discrete"],
        dmc["dyn_deter"],
    ) == (50, 50, 32, 32, 600)
    assert (dmc["model_lr"], dmc["actor_lr"], dmc["value_lr"], dmc["discount"]) == (2e-4, 4e-5, 1e-4, 0.995)


def test_flags_have_the_type_of_the_default():
    config = parsed("--configs", "defaults", "dmc", "--batch_size", "1e1", "--model_lr=3e-4", "--size", "32,32",
                    "--pred_discount", "true", "--source_task", "walker_walk")  # fmt: skip
    assert (config.batch_size, config.model_lr, config.size) == (10, 3e-4, [32, 32])
    assert (config.pred_discount, config.source_task, config.configs) == (True, "walker_walk", ["dmc"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_sizes", "3"], "nearest: --batch_size"),
        (["--configs", "defaults", "dcm"], "nearest: dmc"),
        (["--batch_size", "many"], "batch_size: 'many' (the command line) is not a whole number"),
        (["--batch_size", "2.5"], "is not a whole number"),
        (["--batch_size", "0"], "is not 1 or more"),
        (["--batch_size", "inf"], "is not a whole number"),
        (["--model_lr", "-1"], "is not 0 or more"),
        (["--model_lr", "nan"], "is not 0 or more"),
        (["--discount", "1.5"], "is not between 0 and 1"),
        (["--pred_discount", "perhaps"], "is not True or False"),
        (["--size", "64"], "is not a list of 2"),
        (["--size", "64", "64"], "lists are written with commas"),
        (["--seed", "1e30"], "is not between 0 and 2147483647"),
        (["--size", "64,32"], "two equal numbers"),
        (["--value_constraint", "maxmin"], "is not one of minmax, brute, constant, off"),
        (["--seed"], "expected one argument"),
    ],
)
def test_bad_settings_raise_bad_input_with_one_line(arguments: list[str], message: str):
    with pytest.raises(BadInput, match=re.escape(message)) as error:
        parsed(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults:\n  batch_size: 3\ndmc:\n  bach_size: 4\n", "nearest: batch_size"),
        ("defaults: [1\n", "cannot be read"),
        ("dmc:\n  batch_size: 3\n", "no block `defaults`"),
        ("defaults:\n  batch_size: 3\n2:\n  batch_size: 3\n", "block 2"),
        ("defaults:\n  batch_size: 3\ndmc:\n  3: 4\n", "unknown key '3'"),
        ("defaults:\n  batch_size: 3\ndmc: 4\n", "block dmc"),
    ],
)
def test_a_bad_settings_file_raises_bad_input(text: str, message: str, tmp_path: Path):
    path = tmp_path / "configs.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        settings.read_blocks(path)


def test_written_settings_can_be_read_again(tmp_path: Path):
    config = parsed("--configs", "defaults", "dmc", "debug", "--model_lr", "1e-5")
    path = tmp_path / "configs.yaml"
    path.write_text("defaults:\n" + "".join(f"  {line}\n" for line in settings.to_yaml(config).splitlines()))
    again = settings.merge(settings.read_blocks(path), [], {})
    assert again == {k: v for k, v in vars(config).items() if k != "configs"}


RUN = ("--source_task", "walker-walk", "--target_task", "walker_downhill", "--offline_traindir")


def default_logdir(*arguments: str) -> str:
    config = parsed(*arguments)
    resolved, _ = resolve(config, METHODS[config.method], lambda config: algorithm_1(config))
    return resolved.logdir.removeprefix("runs/").replace("dmc_walker_walk-to-dmc_walker_downhill", "PAIR")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("data/walker_downhill", "--configs", "defaults", "dmc"), "PAIR-dmc-seed0"),
        (("/data/walker_downhill/", "--device", "cpu", "--rounds", "9", "--seed", "3"), "PAIR-seed3"),
        (("data/expert", "--configs", "defaults", "dmc"), "PAIR-dmc-data=expert-seed0"),
        (
            ("walker_downhill", "--configs", "defaults", "dmc", "--state_alignment", "False"),
            "PAIR-dmc-state_alignment=False-seed0",
        ),
        (
            ("walker_downhill", "--size=32,32", "--configs", "defaults", "dmc", "--background", "a/b c"),
            "PAIR-dmc-size=32x32-background=a_b_c-seed0",
        ),
        (("walker_downhill", "--size", "32,32", "--configs", "defaults", "small"), "PAIR-small-seed0"),
        (
            ("walker_downhill", "--method", "offline_dv2", "--ensemble", "3"),
            "offline_dv2-dmc_walker_downhill-ensemble=3-seed0",
        ),
    ],
)
def test_the_default_directory_is_named_by_what_differs_from_the_blocks(flags: tuple[str, ...], name: str):
    assert default_logdir(*RUN, *flags) == name


def test_datasets_with_equal_folder_names_have_different_default_directories(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def place(data: str) -> str:
        return default_logdir(*RUN, data)

    def train(data: str) -> str:
        """What a run leaves, in short."""
        (tmp_path / data).mkdir(parents=True)
        logdir = tmp_path / "runs" / place(data).replace("PAIR", "dmc_walker_walk-to-dmc_walker_downhill")
        logdir.mkdir(parents=True)
        (logdir / "config.yaml").write_text(f"offline_traindir: {data}\n")
        return place(data)

    names = [train(data) for data in ("a/expert", "b/expert", "c/b/expert", "a/walker_downhill", "b/walker_downhill")]
    assert names[:2] == ["PAIR-data=expert-seed0", "PAIR-data=b+expert-seed0"]
    assert re.fullmatch(r"PAIR-data=expert-[0-9a-f]{8}-seed0", names[2])
    assert names[3:] == ["PAIR-seed0", "PAIR-data=b+walker_downhill-seed0"]
    (tmp_path / "a" / "expert").rename(tmp_path / "moved")
    (tmp_path / "c" / "expert").mkdir()
    assert place("c/expert") == names[0]  # the data of the first run is gone: it may be here now
    assert place("b/expert") == names[1]  # an existing run keeps its directory


def test_a_long_default_directory_ends_with_a_hash():
    many = [part for key in ("units", "batch_size", "batch_length", "cnn_depth", "dyn_deter", "dyn_hidden", "dyn_stoch",
            "dyn_discrete", "actor_layers", "value_layers", "state_layers") for part in (f"--{key}", "7")]  # fmt: skip
    one, same, other = (default_logdir(*RUN, "expert", *many, *more) for more in ((), (), ("--units", "9")))
    assert one == same != other and one.startswith("PAIR-data=expert-batch_size=7-")
    assert re.fullmatch(r"PAIR-.*-[0-9a-f]{8}-seed0", one) and len(one) < 160


@pytest.mark.parametrize(
    ("blocks", "target", "right"),
    [
        (["metaworld", "small"], "walker_downhill", "defaults dmc small"),
        ([], "walker_downhill", "defaults dmc"),
        (["small"], "robodesk_push_green", "defaults robodesk small"),
        (["release", "metaworld"], "walker_downhill", "defaults release"),
        (["dmc", "metaworld"], "walker_downhill", "defaults dmc"),
        (["dmc"], "walker_downhill", None),
        (["metaworld", "dmc"], "walker_downhill", None),
        (["release", "small"], "door-close", None),
    ],
)
def test_a_suite_block_that_does_not_fit_the_target_gives_a_warning(blocks: list, target: str, right: str | None):
    warning = block_warning(blocks, parse_task(target))
    assert warning is None if right is None else warning.endswith(f"give --configs {right}") and "\n" not in warning


def test_a_suite_without_a_block_gives_no_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SUITES, "dots", Suite(name="dots", title="Dots", tasks=("middle",), make=None))
    assert block_warning(["dmc"], parse_task("dots_middle")) is None


def test_settings_are_read_only():
    config = parsed("--configs", "defaults", "dmc")
    with pytest.raises(AttributeError, match=r"read-only; use config.replace\(seed=...\)"):
        config.seed = 3
    with pytest.raises(AttributeError, match="read-only"):
        del config.seed
    changed = config.replace(seed=3)
    assert (config.seed, changed.seed) == (0, 3) and changed.replace(seed=0) == config


def test_resolve_computes_derived_settings():
    flags = ("--source_task", "walker-walk", "--target_task", "walker_downhill", "--configs", "defaults", "dmc")
    config = parsed(*flags)
    method = METHODS["coworld"]
    resolved, phases = resolve(config, method, algorithm_1)
    assert resolved.eta_steps == 2 * config.warmup_steps + (config.rounds - 1) * config.source_iterations
    assert resolved.logdir == "runs/dmc_walker_walk-to-dmc_walker_downhill-dmc-seed0" and len(phases) == 26
    assert resolve(config.replace(eta_steps=7), method, algorithm_1)[0].eta_steps == 7
    offline = resolve(config.replace(source_observation="state"), METHODS["offline_dv2"], algorithm_1)[0]
    assert (offline.source_task, offline.source_observation) == ("", "image")  # the method has no source


def test_one_source_leaves_nothing_to_select():
    """The same run is found and resumed, whatever ``select`` is."""
    config, method = parsed(*RUN, "walker_downhill", "--select", "relative"), METHODS["coworld"]
    one, _ = resolve(config, method, algorithm_1)
    assert one.select == "nearest" and one == resolve(config.replace(select="nearest"), method, algorithm_1)[0]
    two, _ = resolve(config.replace(source_task="walker_walk,cheetah_run"), method, algorithm_1)
    assert two.select == "relative" and two.logdir.startswith("runs/relative-")
