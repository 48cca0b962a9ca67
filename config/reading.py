"""Reading settings: the blocks of configs.yaml, merged in the order given, then the command line's flags.

Every key of `defaults`, and every setting of a suite, is a flag of the same name and of the type of its default value.
"""

import argparse
import io
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from config.config import Config
from config.table import facts
from tools import BadInput, Parser, nearest
from wrappers import SUITES

AFTER = " after "  # in the name of a block that is applied with another one
CONFIGS = Path(__file__).parent.with_name("configs.yaml")


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

    A block `small after dreamerv3` is applied with `small` if `dreamerv3` is named before it, not after.

    Raises BadInput on an unknown name, such an order or an invalid value.
    """
    values = dict(blocks["defaults"])
    origin = dict.fromkeys(values, "defaults")
    for name in names:
        if name not in blocks or AFTER in name:
            known = [block for block in blocks if AFTER not in block]
            raise BadInput(f"--configs {name}: no such block in configs.yaml; {nearest(name, known)}")
    method = [blocks[name]["method"] for name in names if "method" in blocks[name]]
    method = flags.get("method") or [values.get("method"), *method][-1]
    for name in with_combinations(blocks, [*[method] * (method in blocks), *(n for n in names if n != "defaults")]):
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


def with_combinations(blocks: CommentedMap, names: list[str]) -> list[str]:
    """``names``, each followed by the blocks `NAME after EARLIER` of the names before it."""
    found = []
    for i, name in enumerate(names):
        if late := [later for later in names[i + 1 :] if f"{name}{AFTER}{later}" in blocks]:
            raise BadInput(
                f"--configs {name} {late[0]}: {late[0]} would replace what {name} sets; name {late[0]} first"
            )
        found += [name, *(block for earlier in names[:i] if (block := f"{name}{AFTER}{earlier}") in blocks)]
    return found


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
    setting = facts(key)
    choices = setting.choices and setting.choices()
    if choices and value not in choices:
        raise ValueError(f"is not one of {', '.join(choices)}")
    low, high = setting.minimum, setting.maximum
    if key == "size":
        if not (isinstance(value, list) and len(value) == 2):
            raise ValueError("is not a list of two, like 64,64")
        if value[0] != value[1] or not low <= value[0] <= high:
            raise ValueError(f"is not two equal numbers of pixels from {low} to {high}, like 64,64")
    if key == "threads" and value != "auto" and not (value.isdecimal() and 1 <= int(value) <= 1024):
        raise ValueError("is not auto, or a whole number from 1 to 1024")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not (low <= value <= high and value < math.inf):
        raise ValueError(f"is not {low} or more" if high == math.inf else f"is not between {low} and {high}")
    if not value > setting.above:
        raise ValueError(f"is not above {setting.above}")


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
