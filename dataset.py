"""Inspect, check, convert, label, describe, merge, select and split offline datasets.

python dataset.py info DIR                      statistics, a histogram of returns, a contact sheet of frames
python dataset.py check DIR                     names every bad file; exit status 1 if there is any
python dataset.py convert IN OUT --to npz       the same episodes in another format, images lossless
python dataset.py label DIR --success 0,3,7-9   reward 1 at the last step of these episodes, 0 elsewhere
python dataset.py describe DIR --preset vd4rl   writes dataset.json: how a dataset was recorded
python dataset.py merge OUT IN IN ...           the episodes of several datasets as one
python dataset.py select IN OUT --where "return > 200"   some of the episodes
python dataset.py split IN OUT_A OUT_B          two random parts
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import BadInput, Parser, exit_on_bad_input  # isort: skip

import argparse
import json
import sys
from pathlib import Path

from config import read_blocks
from replay import FORMATS, DataMapping
from replay.check import describe, find_problems
from replay.command_line import dataset_parser
from replay.convert import Part, convert, refuse_within
from replay.data_files import DataFile, find_data_files, print_notes, splits_of
from replay.episode_numbers import label_episodes
from replay.mapping import OPTIONS, parse_range
from replay.presets import describe_dataset
from replay.selection import description_of_part, divide, merged_description, select
from replay.summary import SHEET_SIZE, picture_folder, summarize, unused_states
from wrappers import parse_task


def main(arguments: list[str] | None = None) -> int:
    """Run one of the commands and return the exit status."""
    args = parser().parse_args(arguments)
    return args.run(args)


def parser() -> Parser:
    """The command line, see `replay.command_line`."""
    commands = run_info, run_check, run_convert, run_label, run_describe, run_merge, run_select, run_split
    run = {command.__name__.removeprefix("run_"): command for command in commands}
    return dataset_parser(run, __doc__, read_blocks()["defaults"]["batch_length"])


def data_files(args: argparse.Namespace, size: int | None = None, directory: Path | None = None) -> list[DataFile]:
    """The files of the dataset; frames of videos are resized to ``size``."""
    keys = {option: getattr(args, option) for option in OPTIONS}
    limits = {"read_memory": args.read_memory, "read_seconds": args.read_seconds}
    reading = {"any_actions": bool(args.action_range), "image_size": size, "action_at": args.action_at}
    only = {"list_only": True, "labelled": True} if args.run is run_label else {}
    mapping = DataMapping(**keys, **limits, **reading, **only, split=args.split, state_keys=args.state_keys)
    parse_range(args.action_range)
    return find_data_files(directory or args.directory, args.dataset_format, mapping)


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
    if splits := splits_of(files[0]):
        print(f"splits        {', '.join(splits)} (--split)")
    if unused := unused_states(files):
        print(f"other states  {unused} (--state_keys)")
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


def write(args: argparse.Namespace, datasets: list[tuple[Path, list[DataFile]]], parts: list[Part]) -> int:
    """Write episodes of datasets into new folders."""
    for directory, _ in datasets:
        for part in parts:
            refuse_within(part.out, directory)
    counts = convert([file for _, files in datasets for file in files], parts, args.to, args.action_range)
    for directory, files in datasets:
        print_notes(directory, files)
    for part, count in zip(parts, counts, strict=True):
        print(f"{part.out}: {count} episode(s) written as {args.to}")
        if usage := FORMATS[args.to].usage:
            print(usage.format(folder=part.out.parent, name=part.out.name))
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Write a dataset in another format."""
    files = data_files(args)
    part = Part(args.out, describe(args.directory, files, nulls=True))
    return write(args, [(args.directory, files)], [part])


def run_label(args: argparse.Namespace) -> int:
    """Write which episodes of a dataset succeeded."""
    path, count = label_episodes(args.directory, data_files(args), args.success)
    print(f"{path}: {count} successful episode(s); all rewards now come from this file")
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


def run_merge(args: argparse.Namespace) -> int:
    """Write the episodes of several datasets as one."""
    datasets = [(directory, data_files(args, directory=directory)) for directory in args.directories]
    return write(args, datasets, [Part(args.out, merged_description(datasets))])


def run_select(args: argparse.Namespace) -> int:
    """Write the episodes that fulfil a condition, or those of a list of numbers."""
    if not args.where and not args.episodes:
        raise BadInput("select: give --where, --episodes or both")
    files = data_files(args)
    task = str(describe(args.directory, files).get("task", ""))
    found = select(files, args.where, args.episodes, task, args.directory)
    part = Part(args.out, description_of_part(args.directory, files), {episode.key for episode in found})
    return write(args, [(args.directory, files)], [part])


def run_split(args: argparse.Namespace) -> int:
    """Write two random parts of a dataset."""
    files = data_files(args)
    divided = divide(select(files, "", "", "", args.directory), args.fraction, args.seed)
    outs, description = (args.out_a, args.out_b), description_of_part(args.directory, files)
    keys = [{episode.key for episode in episodes} for episodes in divided]
    parts = [Part(out, description, keep) for out, keep in zip(outs, keys, strict=True)]
    return write(args, [(args.directory, files)], parts)


if __name__ == "__main__":
    exit_on_bad_input(main)
