"""Look at, convert and check offline datasets.

python datasets.py info DIR                         figures, a return histogram, a contact sheet
python datasets.py convert IN OUT --to npz|minari   the same episodes in another format, images lossless
python datasets.py check DIR                        names every bad file; exit status 1 if there is any
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from tools import BadInput, Parser, exit_on_bad_input
from replay.data_files import FORMATS, find_sources
from replay.cache import may_write
from replay.convert import convert
from replay.data_files import Load, Source
from replay.summary import Summary, shown
from replay.store import read_description


def main(arguments: list[str] | None = None) -> int:
    """Run one of the three commands; returns the exit status."""
    args = _parser().parse_args(arguments)
    return args.run(args)


def _parser() -> Parser:
    parser = Parser(prog="datasets.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="info|convert|check")
    info = commands.add_parser("info", help="figures, a return histogram and a contact sheet")
    info.add_argument("directory", type=Path)
    info.add_argument("--out", type=Path, help="folder for the pictures; DIR, or the current one if DIR is read-only")
    info.set_defaults(run=run_info)
    change = commands.add_parser("convert", help="the same episodes in another format")
    change.add_argument("directory", type=Path, metavar="IN")
    change.add_argument("out", type=Path, metavar="OUT")
    change.add_argument("--to", choices=("npz", "minari"), required=True)
    change.set_defaults(run=run_convert)
    check = commands.add_parser("check", help="name every bad file")
    check.add_argument("directory", type=Path)
    check.set_defaults(run=run_check)
    for command in (info, change, check):
        command.add_argument("--dataset_format", choices=FORMATS, default="auto")
    return parser


def run_info(args: argparse.Namespace) -> int:
    """Print what is in a dataset and draw its two pictures."""
    sources = find_sources(args.directory, args.dataset_format)
    description = _description(args, sources)
    loaders, problems = _loaders(sources)
    summary = Summary()
    show = shown(len(loaders))
    sizes: dict[str, int] = {}
    for index, (place, load) in enumerate(tqdm(loaders, unit="episode", desc="reading", disable=None)):
        try:
            episode = load()
        except BadInput as error:
            problems.append(str(error))
            continue
        sizes[place] = episode["action"].shape[1]
        if sizes[place] == next(iter(sizes.values())):
            summary.add(episode, show=index in show)
    if odd := _odd_ones(sizes):
        raise BadInput(odd[0] + (f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""))
    for problem in problems:
        print(f"warning: left out: {problem}", file=sys.stderr)
    if not summary.returns:
        raise BadInput(f"{args.directory}: no usable episode; see: python datasets.py check {args.directory}")
    print(f"dataset       {args.directory}")
    print(f"format        {sources[0].format}, {len(sources)} file(s)")
    print("\n".join(summary.lines(description)))
    _draw(summary, args)
    return 0


def _description(args: argparse.Namespace, sources: list[Source]) -> dict:
    return read_description(args.directory) or read_description(sources[0].path)


def _draw(summary: Summary, args: argparse.Namespace) -> None:
    folder = args.out
    if folder is None:
        folder = args.directory if args.directory.is_dir() and may_write(args.directory) else Path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        summary.draw_returns(folder / "returns.png")
        summary.draw_sheet(folder / "contact_sheet.png")
    except OSError as error:
        raise BadInput(f"{folder}: cannot write the pictures: {error.strerror}; give another --out") from error
    print(f"pictures      {folder / 'returns.png'}, {folder / 'contact_sheet.png'}")


def run_convert(args: argparse.Namespace) -> int:
    """Write a dataset in another format."""
    sources = find_sources(args.directory, args.dataset_format)
    if args.out.resolve().is_relative_to(args.directory.resolve()):
        raise BadInput(f"{args.out}: lies within the dataset to convert; give a folder outside {args.directory}")
    count = convert(sources, args.out, args.to, _description(args, sources))
    print(f"{args.out}: {count} episode(s) written as {args.to}")
    if args.to == "minari":
        print(f"Minari loads it with MINARI_DATASETS_PATH set to {args.out.parent} and the id {args.out.name!r}")
        if "-v" not in args.out.name:
            print(
                "note: Minari's own loader wants an id that ends in a version, such as name-v0",
                file=sys.stderr,
            )
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Read every episode of a dataset and name each that cannot be used, with the reason."""
    sources = find_sources(args.directory, args.dataset_format)
    loaders, problems = _loaders(sources)
    try:
        _description(args, sources)
    except BadInput as error:
        problems.append(str(error))
    sizes: dict[str, int] = {}
    for place, load in tqdm(loaders, unit="episode", desc="checking", disable=None):
        try:
            sizes[place] = load()["action"].shape[1]
        except BadInput as error:
            problems.append(str(error))
    problems += _odd_ones(sizes)
    for problem in problems:
        print(f"bad: {problem}")
    print(f"{args.directory}: {len(sources)} file(s), {len(sizes)} good episode(s), {len(problems)} problem(s)")
    return 1 if problems else 0


def _odd_ones(sizes: dict[str, int]) -> list[str]:
    """Places of episodes whose action size is not that of most; a dataset with two sizes cannot be trained on."""
    counts = Counter(sizes.values())
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    return [
        f"{place}: actions of size {action}, most others have {usual}; keep one task a folder"
        for place, action in sizes.items()
        if action != usual
    ]


def _loaders(sources: list[Source]) -> tuple[list[tuple[str, Load]], list[str]]:
    """Where each episode is, for people to find it, and its loader; and the files that cannot be used."""
    loaders, problems = [], []
    for source in sources:
        try:
            for label, load in source.episodes():
                within = "" if label == source.path.name else f" {label}"
                loaders.append((f"{source.path}{within}", load))
        except BadInput as error:
            problems.append(str(error))
    return loaders, problems


if __name__ == "__main__":
    exit_on_bad_input(lambda: sys.exit(main()))
