"""Settings: the blocks of configs.yaml, merged in the order given, then the command line's flags.

Every key of `defaults`, and every setting of a suite, is a flag of the same name and of the type of its default value.
"""

import argparse
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from replay import FORMATS
from tools import BadInput, Parser, nearest, short_name
from wrappers import SUITES, parse_task, simulated_task

CONFIGS = Path(__file__).with_name("configs.yaml")

CHOICES = {  # `method` is checked by training/methods.py, which defines the methods
    "precision": ("auto", "float32", "bfloat16"),
    "compile": ("auto", "on", "off"),
    "select": ("nearest", "relative", "first", "round_robin"),
    "source_observation": ("image", "state"),
    "render": ("fast", "full"),
    "actor_grad": ("dynamics", "reinforce", "both"),
    "value_constraint": ("minmax", "brute", "off"),
    "act": ("ELU", "ReLU", "SiLU", "GELU", "Tanh"),
}
MIN_VALUES = {  # the minimum of other numbers is 0
    1: (
        "time_limit train_every eval_every eval_episodes eval_envs batch_size grad_accum dyn_stoch dyn_deter "
        "dyn_hidden cnn_depth units ewc_batches slow_target_update log_every transitions frame_stack nstep "
        "feature_size q_units conservative_actions"
    ).split(),
    2: ["batch_length", "imag_horizon", "ensemble"],
}
FRACTIONS = (
    "discount discount_lambda kl_balance target_informed_factor eta_start eta_end actor_grad_mix holdout target_tau "
    "key_tau"
).split()
LENGTHS = (  # settings that decide the phases of a run; `episodes` is collect.py's
    "pretrain_steps warmup_rounds warmup_updates warmup_steps rounds target_iterations source_iterations eval_every "
    "episodes"
).split()
RESUMABLE_CHANGES = {  # settings that may differ when a run is resumed; training/checkpoint.py checks phases and data
    *("configs logdir source_from device threads compile offline_traindir dataset_format dataset_cache".split()),
    *("replay_size eval_envs eval_episodes log_every video_every video_size checkpoint_minutes".split()),
    *LENGTHS,
}

IN_A_RUNS_NAME = {"method", "select", "source_task", "target_task", "seed"}
NAMELESS = "dataset"  # the target's name if --target_task is not given
HOLDOUT = 0.1  # of a target without a simulator, if `holdout` is 0


class Config:
    """Settings as read-only attributes; ``vars(config)`` is a dict of them. `replace` makes a changed copy."""

    def __init__(self, **values: Any):
        vars(self).update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings are read-only; use config.replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("settings are read-only")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"

    def replace(self, **changes: Any) -> "Config":
        return Config(**{**vars(self), **changes})


# Reading blocks and flags


@cache
def _parse(text: str, suites: tuple[str, ...]) -> CommentedMap:
    return YAML().load(text)  # again for other suites, whose settings `read_blocks` adds


def read_blocks(path: Path = CONFIGS) -> CommentedMap:
    """The blocks of a settings file, with their comments; suites' settings that it lacks are added to `defaults`.

    Callers share them: do not change them. Raises BadInput if the file cannot be read or has an unknown key.
    """
    try:
        blocks = _parse(path.read_text(), tuple(SUITES))
    except (OSError, ValueError, YAMLError) as error:
        raise BadInput(f"{path.name} cannot be read: {str(error)[:200]}") from None
    if not isinstance(blocks, dict) or not isinstance(blocks.get("defaults"), dict):
        raise BadInput(f"{path.name} has no block `defaults`")
    add_suite_settings(blocks["defaults"])
    for name, block in blocks.items():
        if not isinstance(name, str) or not isinstance(block, dict):
            raise BadInput(f"{path.name}: block {name} is not a list of `key: value` lines")
        if isinstance(block.get("source_task"), list):
            block["source_task"] = ",".join(map(str, block["source_task"]))
        for key in block:
            key = str(key)
            if key not in blocks["defaults"]:
                raise BadInput(f"{path.name}, block {name}: unknown key {key!r}; {nearest(key, blocks['defaults'])}")
    return blocks


def add_suite_settings(defaults: CommentedMap) -> None:
    """Add ``SUITE_SETTING: default`` to ``defaults`` for every setting of a suite that configs.yaml does not have."""
    for suite in SUITES.values():
        for key, value in suite.settings.items():
            name = f"{suite.name}_{key}"
            if name not in defaults:
                defaults[name] = value
                defaults.yaml_add_eol_comment(suite.setting_help(key), name)


def merge(blocks: CommentedMap, names: list[str], flags: dict[str, str]) -> dict[str, Any]:
    """Values of `defaults`, then of the block of the method's name if there is one, of each named block, of the flags.

    Raises BadInput on an unknown name or an invalid value.
    """
    values = dict(blocks["defaults"])
    origin = dict.fromkeys(values, "defaults")
    for name in names:
        if name not in blocks:
            raise BadInput(f"--configs {name}: no such block in configs.yaml; {nearest(name, blocks)}")
    method = [blocks[name]["method"] for name in names if "method" in blocks[name]]
    method = flags.get("method") or [values.get("method"), *method][-1]
    for name in [*[method] * (method in blocks), *(name for name in names if name != "defaults")]:
        values.update(blocks[name])
        origin.update(dict.fromkeys(blocks[name], name))
    values.update(flags)
    origin.update(dict.fromkeys(flags, "the command line"))
    merged = {}
    for key, value in values.items():
        try:
            merged[key] = convert(value, blocks["defaults"][key])
            check(key, merged[key])
        except ValueError as error:
            raise BadInput(f"{key}: {value!r} ({origin[key]}) {error}") from None
    return merged


def convert(value: Any, default: Any) -> Any:
    """``value``, which may be a flag's text, in the type of ``default``. ValueError says what was expected."""
    if isinstance(default, bool):
        words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        if str(value).lower() not in words:
            raise ValueError("is not True or False")
        return words[str(value).lower()]
    if isinstance(default, list):
        items = str(value).strip("[]()").replace(" ", "").split(",") if isinstance(value, str) else list(value)
        if len(items) != len(default):
            raise ValueError(f"is not a list of {len(default)}, like {','.join(map(str, default))}")
        return [convert(item, default[0]) for item in items]
    if isinstance(default, str):
        return "" if value is None else str(value)
    kind = "a whole number" if isinstance(default, int) else "a number"
    if isinstance(value, bool):
        raise ValueError(f"is not {kind}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"is not {kind}") from None
    if isinstance(default, float):
        return number
    if not number.is_integer():  # `1e4` is valid; `0.5`, `nan` and `inf` are not
        raise ValueError(f"is not {kind}")
    return int(number)


def check(key: str, value: Any) -> None:
    """ValueError if ``value`` is not valid for ``key``."""
    choices = ("auto", *FORMATS) if key == "dataset_format" else CHOICES.get(key)
    if choices and value not in choices:
        raise ValueError(f"is not one of {', '.join(choices)}")
    if key == "size" and (value[0] != value[1] or not 16 <= value[0] <= 512):
        raise ValueError("is not two equal numbers of pixels from 16 to 512, like 64,64")
    if key == "threads" and value != "auto" and not (value.isdecimal() and 1 <= int(value) <= 1024):
        raise ValueError("is not auto, or a whole number from 1 to 1024")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if key == "seed" and value >= 2**31:
        raise ValueError("is not under 2147483648")
    least = int(key.endswith("_action_repeat"))
    minimum = next((bound for bound, keys in MIN_VALUES.items() if key in keys), least)
    if not minimum <= value < float("inf"):
        raise ValueError(f"is not {minimum} or more")
    if key == "initial_temperature" and value == 0:
        raise ValueError("is not above 0")
    if key in FRACTIONS and value > 1:
        raise ValueError("is not between 0 and 1")


def parser(description: str) -> argparse.ArgumentParser:
    """A command's parser. The command may add its own arguments before `parse`."""
    return Parser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)


def parse(command: argparse.ArgumentParser, arguments: list[str] | None = None) -> tuple[Config, argparse.Namespace]:
    """(settings, the command's own arguments) of a command line. Raises BadInput on anything unknown or invalid.

    The arguments have one more, ``given``: the settings that were given as flags.
    """
    blocks = read_blocks()
    command.add_argument(
        "--configs",
        action="extend",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="BLOCK",
        help=f"blocks of configs.yaml: {', '.join(blocks)} (default: defaults)",
    )
    group = command.add_argument_group("settings (configs.yaml)", "values shown are those of `defaults`")
    for key, value in blocks["defaults"].items():
        text = (comment(blocks["defaults"], key) or key).replace("%", "%%")
        shown = ",".join(map(str, value)) if isinstance(value, list) else value
        group.add_argument(f"--{key}", metavar="VALUE", default=argparse.SUPPRESS, help=f"{text} (default: {shown!s})")
    known, unknown = command.parse_known_args(arguments)
    if unknown:
        name = unknown[0].split("=")[0]
        if not name.startswith("-"):
            raise BadInput(f"stray argument {name!r}: lists are written with commas, like --size 32,32")
        options = [o for action in command._actions for o in action.option_strings]
        raise BadInput(f"unknown argument {unknown[0]!r}; {nearest(name, options)}")
    args = vars(known)
    flags = {key: args.pop(key) for key in list(args) if key in blocks["defaults"]}
    names = args.pop("configs", ["defaults"])
    config = Config(**merge(blocks, names, flags), configs=[n for n in names if n != "defaults"])
    return config, argparse.Namespace(**args, given=list(flags))


def refuse_without_effect(given: Iterable[str], unused: Mapping[str, str]) -> None:
    """Raises BadInput if one of ``given``, the options on the command line, is in ``unused``: options -> the reason."""
    for key in given:
        if key in unused:
            raise BadInput(f"--{key} has no effect {unused[key]}; remove it")


def comment(block: CommentedMap, key: str) -> str:
    """The comment on the line of ``key``."""
    tokens = block.ca.items.get(key)
    return tokens[2].value.split("\n")[0].lstrip("# ").strip() if tokens and tokens[2] else ""


def to_yaml(config: Config) -> str:
    """The settings as a block for configs.yaml, below a comment with the blocks that they came from."""
    text = io.StringIO()
    YAML().dump({key: value for key, value in vars(config).items() if key != "configs"}, text)
    return f"# --configs {' '.join(['defaults', *config.configs])}\n{text.getvalue()}"


# Derived settings


def task_names(config: Config, key: str) -> list[str]:
    """The full names of the tasks under ``key``, which commas separate. Raises BadInput with the flag's name.

    The target may have no simulator: then it has any free name (see `wrappers.simulated_task`), or none.
    """
    text = getattr(config, key) or (NAMELESS if key == "target_task" else "")
    given = [task.strip() for task in text.split(",")]
    if not all(given):
        raise BadInput(f"--{key} {getattr(config, key)!r}: task {given.index('') + 1} is empty; remove its comma")
    if key == "target_task" and len(given) > 1:
        raise BadInput(f"--target_task {config.target_task}: the target is one task; give one")
    parse = simulated_task if key == "target_task" else parse_task
    try:
        return [str(parse(task) or task) for task in given]
    except BadInput as error:
        raise BadInput(f"--{key}: {error}") from None


def has_target_simulator(config: Config) -> bool:
    """Whether the target has a simulator. Raises BadInput if its name is neither a task's nor a free one."""
    return simulated_task(task_names(config, "target_task")[0]) is not None


def resolve(config: Config, method: Any, schedule: Callable[[Config], Sequence[Any]]) -> tuple[Config, list[Any]]:
    """Compute every derived setting and check settings against each other.

    Args:
        config: settings as given.
        method: the run's `training.methods.Method`.
        schedule: makes the run's `training.methods.Phase` list from settings.

    Returns:
        the settings, with ``logdir``, ``eta_steps``, ``source_task``, ``source_observation``, and without a target
        simulator ``target_task`` and ``holdout``, as the run uses them, and the phases.

    Raises:
        BadInput: settings that do not fit together.
    """
    if not method.uses_sources:
        config = config.replace(source_task="", source_observation="image")
    if method.dataset and not has_target_simulator(config):
        target = task_names(config, "target_task")[0]
        config = config.replace(target_task=target, holdout=config.holdout or HOLDOUT)
    if "," not in config.source_task:
        config = config.replace(select="nearest")  # one source leaves nothing to select
    config = config.replace(logdir=config.logdir or str(default_logdir(config, method)))
    phases = list(schedule(config))
    if config.eta_steps == 0:
        config = config.replace(eta_steps=aligned_steps(phases))
    check_against_each_other(config, method)
    return config, phases


def aligned_steps(phases: Sequence[Any]) -> int:
    """The agent steps with reward alignment (stage B): the default of ``eta_steps``."""
    return sum(phase.iterations for phase in phases if phase.kind == "train_source" and phase.aligned)


def default_logdir(config: Config, method: Any) -> Path:
    """A run directory named by the command, so that the same command resumes its run and another one does not."""
    parts = [] if config.method == "coworld" else [config.method]
    if method.uses_sources:
        sources = task_names(config, "source_task")
        parts += [config.select] if len(sources) > 1 and config.select != "nearest" else []
        parts += ["+".join(sources), "to"]
    target = task_names(config, "target_task")[0]
    if not (method.dataset and config.offline_traindir):
        return run_directory(config, *parts, target)
    data = Path(config.offline_traindir).expanduser().resolve()
    own = [] if data.name == short_name(getattr(simulated_task(target), "name", target)) else [f"data={data.name}"]
    digest = hashlib.blake2b(str(data).encode(), digest_size=4).hexdigest()
    more = [[f"data={data.parent.name}+{data.name}"], [f"data={data.name}-{digest}"]]  # for equal names of folders
    places = [run_directory(config, *parts, target, settings=settings) for settings in (own, *more)]
    found = [data_of_run(place) for place in places]
    its_own = [place for place, other in zip(places, found, strict=True) if other == data]
    free = [place for place, other in zip(places, found, strict=True) if other is None or not other.exists()]
    return [*its_own, *free, *places][0]  # a run on data that is gone may be on this data, moved


def data_of_run(logdir: Path) -> Path | None:
    """The folder of the dataset of the run in a directory; None if there is no run."""
    try:
        folder = YAML(typ="safe").load((logdir / "config.yaml").read_text())["offline_traindir"]
        return Path(folder).expanduser().resolve()
    except (OSError, ValueError, TypeError, KeyError, YAMLError):
        return None


def run_directory(config: Config, *parts: str, settings: Sequence[str] = ()) -> Path:
    """``runs/PARTS-BLOCKS-SETTINGS-seedN``; a long name is cut and gets a hash.

    The settings are ``settings``, and those that differ from the blocks, but for those of other parts of the name and
    those that may change when a run is resumed.
    """
    changed = list(settings)
    for key, value in merge(read_blocks(), config.configs, {"method": config.method}).items():
        own = getattr(config, key)
        if own != value and key not in RESUMABLE_CHANGES | IN_A_RUNS_NAME:
            changed.append(f"{key}={'x'.join(map(str, own)) if isinstance(own, list) else own}")
    return Path("runs") / f"{short_name('-'.join([*parts, *config.configs, *changed]))}-seed{config.seed}"


def check_against_each_other(config: Config, method: Any) -> None:
    """Raises BadInput on settings that are valid alone but not together."""
    cores = os.cpu_count() or 1
    for key in ("envs", "eval_envs"):
        if getattr(config, key) > 8 * cores:
            most = f"{cores} processor cores can run at most {8 * cores} simulators"
            raise BadInput(f"{key} {getattr(config, key)}: {most}; lower it")
    if config.source_observation == "state" and method.shares_weights:
        raise BadInput(
            f"--source_observation state: method {config.method} shares weights between source and target, which "
            f"need the same observations; give image"
        )
    if config.holdout == 1:
        raise BadInput("holdout 1 leaves no episode to learn from; give a share under 1, like 0.1")
    if config.grad_accum > config.batch_size:
        raise BadInput(f"grad_accum {config.grad_accum} is more parts than a batch of {config.batch_size} has")
    state_aligned = config.source_observation == "state" and config.state_alignment
    if method.aligned_with_sources and state_aligned and config.grad_accum > 1:
        raise BadInput(
            f"grad_accum {config.grad_accum}: with --source_observation state the alignment compares means over the "
            f"whole batch, which parts do not have; give --grad_accum 1"
        )
    envs = max(config.envs, 1)
    if method.online and config.prefill < config.time_limit * envs:
        raise BadInput(
            f"prefill {config.prefill} is shorter than an episode (time_limit {config.time_limit}) of each of "
            f"{envs} simulators; raise it"
        )
    simulators = method.online or has_target_simulator(config)
    if simulators and method.world_model and config.time_limit + 1 < config.batch_length:
        raise BadInput(
            f"batch_length {config.batch_length} is longer than an episode of {config.time_limit} steps; lower it"
        )
