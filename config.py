"""Settings: the blocks of configs.yaml, merged in the order given, then the command line's flags.

Every key of `defaults` is a flag of the same name and of the type of its default value.
"""

import argparse
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from tools import BadInput, Parser, nearest

CONFIGS = Path(__file__).with_name("configs.yaml")

CHOICES = {
    "precision": ("float32", "bfloat16"),
    "compile": ("auto", "on", "off"),
    "method": ("coworld", "offline_dv2", "dv2_finetune", "dv2_finetune_ewc", "multitask_dv2", "online_dv2"),
    "select": ("nearest", "relative", "first", "round_robin"),
    "dataset_format": ("auto", "npz", "hdf5", "minari"),
    "source_observation": ("image", "state"),
    "render": ("fast", "full"),
    "actor_grad": ("dynamics", "reinforce", "both"),
    "value_constraint": ("minmax", "brute", "off"),
    "act": ("ELU", "ReLU", "SiLU", "GELU", "Tanh"),
}
AT_LEAST = {  # other numbers only have to be 0 or more
    1: (
        "time_limit dmc_action_repeat metaworld_action_repeat robodesk_action_repeat train_every eval_every "
        "eval_episodes eval_envs batch_size grad_accum dyn_stoch dyn_deter dyn_hidden cnn_depth units "
        "ewc_batches slow_target_update log_every"
    ).split(),
    2: ["batch_length", "imag_horizon", "ensemble"],
}
SHARES = (
    "discount",
    "discount_lambda",
    "kl_balance",
    "target_informed_factor",
    "eta_start",
    "eta_end",
    "actor_grad_mix",
)


def read_blocks(path: Path = CONFIGS) -> CommentedMap:
    """The blocks of a settings file, with their comments. BadInput if it cannot be read or names an unknown key."""
    try:
        blocks = YAML().load(path.read_text())
    except (OSError, ValueError, YAMLError) as error:
        raise BadInput(f"{path.name} cannot be read: {str(error)[:200]}") from None
    if not isinstance(blocks, dict) or not isinstance(blocks.get("defaults"), dict):
        raise BadInput(f"{path.name} has no block `defaults`")
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


def merge(blocks: CommentedMap, names: list[str], flags: dict[str, str]) -> dict[str, Any]:
    """Values of `defaults`, then of each named block, then of the flags. BadInput on an unknown name or a bad value."""
    values = dict(blocks["defaults"])
    where = dict.fromkeys(values, "defaults")
    for name in names:
        if name not in blocks:
            raise BadInput(f"--configs {name}: no such block in configs.yaml; {nearest(name, blocks)}")
        values.update(blocks[name])
        where.update(dict.fromkeys(blocks[name], name))
    values.update(flags)
    where.update(dict.fromkeys(flags, "the command line"))
    merged = {}
    for key, value in values.items():
        try:
            merged[key] = convert(value, blocks["defaults"][key])
            check(key, merged[key])
        except ValueError as error:
            raise BadInput(f"{key}: {value!r} ({where[key]}) {error}") from None
    return merged


def convert(value: Any, default: Any) -> Any:
    """``value``, perhaps a flag's text, in the type of ``default``. ValueError says what was expected."""
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
    if not number.is_integer():  # `1e4` is fine, `0.5`, `nan` and `inf` are not
        raise ValueError(f"is not {kind}")
    return int(number)


def check(key: str, value: Any) -> None:
    """ValueError if ``value`` is outside what ``key`` may be."""
    if key in CHOICES and value not in CHOICES[key]:
        raise ValueError(f"is not one of {', '.join(CHOICES[key])}")
    if key == "size" and not (isinstance(value, list) and len(value) == 2):
        raise ValueError("is not a list of two, like 64,64")
    if key == "size" and (value[0] != value[1] or not 16 <= value[0] <= 512):
        raise ValueError("is not two equal numbers of pixels from 16 to 512, like 64,64")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if key == "seed" and value >= 2**31:
        raise ValueError("is not under 2147483648")
    least = next((bound for bound, keys in AT_LEAST.items() if key in keys), 0)
    if not least <= value < float("inf"):
        raise ValueError(f"is not {least} or more")
    if key in SHARES and value > 1:
        raise ValueError("is not between 0 and 1")


def parser(description: str) -> argparse.ArgumentParser:
    """A command's parser, to which it may add its own arguments before `parse`."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    return Parser(description=description, formatter_class=formatter, allow_abbrev=False)


def parse(
    command: argparse.ArgumentParser, arguments: list[str] | None = None
) -> tuple[SimpleNamespace, argparse.Namespace]:
    """(settings, the command's own arguments) from the command line. BadInput on anything unknown or ill-typed."""
    blocks = read_blocks()
    command.add_argument(
        "--configs",
        nargs="+",
        default=["defaults"],
        metavar="BLOCK",
        help=f"blocks of configs.yaml: {', '.join(blocks)}",
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
    own = vars(known)
    flags = {key: own.pop(key) for key in list(own) if key in blocks["defaults"]}
    names = own.pop("configs")
    settings = SimpleNamespace(**merge(blocks, names, flags), configs=[n for n in names if n != "defaults"])
    return settings, argparse.Namespace(**own)


def comment(block: CommentedMap, key: str) -> str:
    """The comment on the line of ``key``."""
    tokens = block.ca.items.get(key)
    return tokens[2].value.split("\n")[0].lstrip("# ").strip() if tokens and tokens[2] else ""


def to_yaml(config: SimpleNamespace) -> str:
    """The settings as the lines of a block that can be put back into configs.yaml, under a comment with its origin."""
    text = io.StringIO()
    YAML().dump({key: value for key, value in vars(config).items() if key != "configs"}, text)
    return f"# --configs {' '.join(['defaults', *config.configs])}\n{text.getvalue()}"
