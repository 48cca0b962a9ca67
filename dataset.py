"""Inspect, check, convert, label and describe offline datasets.

python dataset.py info DIR                      statistics, a histogram of returns, a contact sheet of frames
python dataset.py check DIR                     names every bad file; exit status 1 if there is any
python dataset.py convert IN OUT --to npz       the same episodes in another format, images lossless
python dataset.py label DIR --success 0,3,7-9   LeRobot: reward 1 at the last step of these episodes, else 0
python dataset.py describe DIR --preset vd4rl   writes dataset.json: how a dataset was recorded
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import BadInput, Parser, exit_on_bad_input, user_path  # isort: skip

import argparse
import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress

from config import read_blocks
from replay import FORMATS, DataMapping
from replay.check import describe, find_problems
from replay.convert import convert, refuse_within
from replay.data_files import DataFile, find_data_files, print_notes
from replay.lerobot_meta import LABELS, parse_numbers, write_labels
from replay.mapping import OPTIONS, PLACES, ROLES, parse_range
from replay.presets import PRESETS, describe_dataset
from replay.reader_process import SECONDS
from replay.safe_read import READ_MEMORY
from replay.summary import SHEET_SIZE, picture_folder, summarize
from wrappers import parse_task

HELP = {
    "image": "images; several cameras: front,wrist",
    "action": "actions",
    "reward": "rewards",
    "done": "true where the task terminated",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one of the commands and return the exit status."""
    args = parser().parse_args(arguments)
    return args.run(args)


def parser() -> Parser:
    """The command line. It offers all formats that are registered when it is called."""
    parser = Parser(prog="dataset.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="info|check|convert|label|describe")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str, place: str = "DIR"
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text)
        command.add_argument("directory", type=user_path, metavar=place)
        command.set_defaults(run=run)
        return command

    info = add("info", run_info, "statistics, a histogram of returns and a contact sheet")
    out_help = "folder for the pictures (default: DIR, or the current one if DIR is read-only)"
    info.add_argument("--out", type=user_path, help=out_help)
    rows = read_blocks()["defaults"]["batch_length"]
    info.add_argument("--batch_length", type=int, default=rows, help=f"rows of a run's sequences (default: {rows})")
    check = add("check", run_check, "name every bad file")
    change = add("convert", run_convert, "write the same episodes in another format", "IN")
    change.add_argument("out", type=user_path, metavar="OUT")
    writable = [name for name, format in FORMATS.items() if format.write is not None]
    change.add_argument("--to", choices=writable, required=True)
    label = add("label", run_label, "LeRobot: rewards from a list of successful episodes")
    label.add_argument("--success", required=True, metavar="0,3,7-9", help="their numbers; '' if none succeeded")
    describe = add("describe", run_describe, "write dataset.json, how the data was recorded")
    describe.add_argument("--preset", default="", choices=tuple(PRESETS), help="of a well-known dataset")
    clip_help = "the simulator clipped the actions to [-1, 1] and they were recorded before: clip them"
    describe.add_argument("--clip_actions", action="store_true", help=clip_help)
    describe.add_argument("--task", default="", help="the dataset's task, such as walker_walk")
    describe.set_defaults(action_range="")
    for command in (info, check, change, describe):
        command.add_argument("--dataset_format", choices=("auto", *FORMATS), default="auto")
        limits = "most that reading a slice of an episode may take"
        command.add_argument("--read_memory", type=gibibytes, default=READ_MEMORY, metavar="GIB", help=limits)
        command.add_argument("--read_seconds", type=whole_seconds, default=SECONDS, metavar="N", help=limits)
        for role, option in zip(ROLES, OPTIONS, strict=True):
            command.add_argument(f"--{option}", default="", metavar="NAME", help=f"name of the array: {HELP[role]}")
        states = "arrays of low-dimensional states, separated by commas: qpos,gripper"
        command.add_argument("--state_keys", default="", metavar="NAMES", help=states)
        at = "the image at which the action of row t was taken: current, image t; next, the one before it"
        command.add_argument("--action_at", default="auto", choices=("auto", *PLACES), help=at)
    for command in (info, check, change):
        ranges = "range of the actions, rescaled to [-1, 1]"
        command.add_argument("--action_range", default="", metavar="data|LOW,HIGH", help=ranges)
    return parser


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


def data_files(args: argparse.Namespace, size: int | None = None) -> list[DataFile]:
    """The files of the dataset; frames of videos are resized to ``size``."""
    keys = {option: getattr(args, option) for option in OPTIONS}
    limits = {"read_memory": args.read_memory, "read_seconds": args.read_seconds}
    reading = {"any_actions": bool(args.action_range), "image_size": size, "action_at": args.action_at}
    mapping = DataMapping(**keys, **limits, **reading, state_keys=args.state_keys)
    parse_range(args.action_range)
    return find_data_files(args.directory, args.dataset_format, mapping)


def run_info(args: argparse.Namespace) -> int:
    """Print the summary of a dataset and draw its two pictures. Actions outside [-1, 1] are shown too."""
    if args.batch_length < 2:
        raise BadInput(f"--batch_length {args.batch_length}: a sequence has 2 or more rows")
    files = [file.with_any_actions() for file in data_files(args, SHEET_SIZE)]
    description = describe(args.directory, files)
    summary, problems = summarize(files, args.action_range)
    if not summary.returns:
        more = f" (and {len(problems) - 1} more, see dataset.py check)" if len(problems) > 1 else ""
        raise BadInput(f"{args.directory}: no usable episode: {problems[0]}{more}")
    for problem in problems:
        print(f"warning: left out: {problem}", file=sys.stderr)
    print(f"dataset       {args.directory}")
    print(f"format        {files[0].format.name}, {len(files)} file(s)")
    facts = [f"{name:<14}{text}" for name, text in files[0].format.facts(args.directory).items()]
    print("\n".join([*facts, *summary.lines(description, args.batch_length)]))
    print_notes(args.directory, files)
    for warning in summary.warnings(args.directory, files[0].mapping.action_at):
        print(f"warning: {warning}", file=sys.stderr)
    pictures = summary.draw(args.out or picture_folder(args.directory))
    print(f"pictures      {', '.join(map(str, pictures))}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Read every episode of a dataset and print the reason for each one that cannot be used."""
    files = data_files(args, SHEET_SIZE)
    good, problems = find_problems(args.directory, files, args.action_range)
    print_notes(args.directory, files)
    for problem in problems:
        print(f"bad: {problem}")
    print(f"{args.directory}: {len(files)} file(s), {good} good episode(s), {len(problems)} problem(s)")
    return 1 if problems else 0


def run_convert(args: argparse.Namespace) -> int:
    """Write a dataset in another format."""
    files = data_files(args)
    refuse_within(args.out, args.directory)
    count = convert(files, args.out, args.to, describe(args.directory, files, nulls=True), args.action_range)
    print_notes(args.directory, files)
    print(f"{args.out}: {count} episode(s) written as {args.to}")
    if usage := FORMATS[args.to].usage:
        print(usage.format(folder=args.out.parent, name=args.out.name))
    return 0


def run_label(args: argparse.Namespace) -> int:
    """Write which episodes of a LeRobot dataset succeeded."""
    count = write_labels(args.directory, parse_numbers(args.success))
    print(f"{args.directory / LABELS}: {count} successful episode(s); all rewards now come from this file")
    return 0


def run_describe(args: argparse.Namespace) -> int:
    """Write how a dataset was recorded."""
    task = parse_task(args.task) if args.task else None
    files = [file.unclipped() for file in data_files(args)]
    named = (str(task), task.suite) if task else ("", "")
    given = {"action_at": args.action_at, "clip_actions": args.clip_actions}
    path, description = describe_dataset(args.directory, files, args.preset, *named, **given)
    print(f"{path}: {json.dumps(description)}")
    return 0


if __name__ == "__main__":
    exit_on_bad_input(main)
