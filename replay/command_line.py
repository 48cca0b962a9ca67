"""The command line of dataset.py."""

import argparse
import math
from collections.abc import Callable
from contextlib import suppress

from replay.formats import FORMATS
from replay.mapping import OPTIONS, PLACES, ROLES
from replay.presets import PRESETS
from replay.reader_process import SECONDS
from replay.safe_read import READ_MEMORY
from tools import Parser, user_path

HELP = {
    "image": "images; which camera, or several: front,wrist",
    "action": "actions",
    "reward": "rewards",
    "done": "true where the task terminated",
}
NUMBERS = "0,3,7-9"

Run = Callable[[argparse.Namespace], int]


def dataset_parser(run: dict[str, Run], description: str, batch_length: int) -> Parser:
    """The command line of dataset.py. It offers all formats that are registered when it is called.

    Args:
        run: the function of each command.
        description: of the program.
        batch_length: default of ``info --batch_length``.
    """
    parser = Parser(prog="dataset.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="|".join(run))

    def add(name: str, text: str, place: str = "DIR") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text)
        if place:
            command.add_argument("directory", type=user_path, metavar=place)
        command.set_defaults(run=run[name], **NOT_GIVEN)
        return command

    info = add("info", "statistics, a histogram of returns and a contact sheet")
    out_help = "folder for the pictures (default: DIR, or the current one if DIR is read-only)"
    info.add_argument("--out", type=user_path, help=out_help)
    rows_help = f"rows of a run's sequences (default: {batch_length})"
    info.add_argument("--batch_length", type=int, default=batch_length, help=rows_help)
    check = add("check", "name every bad file")
    change = add("convert", "write the same episodes in another format", "IN")
    label = add("label", "rewards from a list of successful episodes")
    label.add_argument(
        "--success", required=True, metavar=NUMBERS, help="their numbers, see info; '' if none succeeded"
    )
    describe = add("describe", "write dataset.json, how the data was recorded")
    add_describe_options(describe)
    merge = add("merge", "write the episodes of several datasets as one", "")
    select = add("select", "write some of the episodes", "IN")
    where_help = "comparisons of episode, return, length, task or file, joined with and: return > 200 and length <= 500"
    select.add_argument("--where", default="", metavar="CONDITION", help=where_help)
    select.add_argument("--episodes", default="", metavar=NUMBERS, help="numbers of episodes, see info")
    split = add("split", "write two random parts", "IN")
    split.add_argument("--fraction", type=float, default=0.9, help="share of the first part (default: 0.9)")
    split.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    writable = [name for name, format in FORMATS.items() if format.write is not None]
    for command, outs in ((change, ["out"]), (merge, ["out"]), (select, ["out"]), (split, ["out_a", "out_b"])):
        for out in outs:
            command.add_argument(out, type=user_path, metavar=out.upper())
        to_help = "format of what is written" + ("" if command is change else " (default: npz)")
        command.add_argument("--to", choices=writable, required=command is change, default="npz", help=to_help)
    merge.add_argument("directories", type=user_path, nargs="+", metavar="IN")
    for command in (info, check, change, label, describe, merge, select, split):
        add_limits(command)
    for command in (info, check, change, describe, merge, select, split):
        add_mapping_options(command)
    for command in (info, check, change, merge, select, split):
        ranges = "range of the actions, rescaled to [-1, 1]"
        command.add_argument("--action_range", default="", metavar="data|LOW,HIGH", help=ranges)
    return parser


NOT_GIVEN = dict.fromkeys((*OPTIONS, "action_range", "state_keys", "split"), "") | {"action_at": "auto"}


def add_describe_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--preset", default="", choices=tuple(PRESETS), help="of a well-known dataset")
    clip_help = "the simulator clipped the actions to [-1, 1] and they were recorded before: clip them"
    command.add_argument("--clip_actions", action="store_true", help=clip_help)
    command.add_argument("--task", default="", help="the dataset's task, such as walker_walk")


def add_limits(command: argparse.ArgumentParser) -> None:
    """The format, and the limits of reading."""
    command.add_argument("--dataset_format", choices=("auto", *FORMATS), default="auto")
    limits = "most that reading a slice of an episode may take"
    command.add_argument("--read_memory", type=gibibytes, default=READ_MEMORY, metavar="GIB", help=limits)
    command.add_argument("--read_seconds", type=whole_seconds, default=SECONDS, metavar="N", help=limits)


def add_mapping_options(command: argparse.ArgumentParser) -> None:
    """Which arrays and episodes are used."""
    for role, option in zip(ROLES, OPTIONS, strict=True):
        command.add_argument(f"--{option}", default="", metavar="NAME", help=f"name of the array: {HELP[role]}")
    states = "arrays of low-dimensional states, separated by commas: qpos,gripper"
    command.add_argument("--state_keys", default="", metavar="NAMES", help=states)
    at = "the image at which the action of row t was taken: current, image t; next, the one before it"
    command.add_argument("--action_at", default="auto", choices=("auto", *PLACES), help=at)
    part = "the part of the data that is used, as its files name it (robomimic: train, valid)"
    command.add_argument("--split", default="", metavar="NAME", help=part)


def gibibytes(text: str) -> float:
    """The number of --read_memory, which is at least 0.25."""
    with suppress(ValueError):
        if 0.25 <= (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text}: give 0.25 or more, in GiB")


def whole_seconds(text: str) -> int:
    """The number of --read_seconds, from 1 to a million."""
    with suppress(ValueError):
        if 1 <= (number := int(text)) <= 10**6:
            return number
    raise argparse.ArgumentTypeError(f"{text}: give 1 or more, in whole seconds")
