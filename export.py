"""Write a run's policy as one file that runs with torch alone, or with ONNX Runtime alone (docs/deployment.md).

python export.py --logdir RUN --out policy.pt2
python export.py --logdir RUN --out policy.onnx
"""

# First: with it, Ctrl-C during the other imports prints one line too.
from tools import BadInput, Parser, exit_on_bad_input, write_atomically, user_path  # isort: skip
import training.threads  # isort: skip  # noqa: F401 (before torch: it says how threads wait)

import argparse
import re
import sys
import warnings
from pathlib import Path

from policy import PixelPolicy, load_policy
from policy.onnx_program import check_onnx, largest_onnx_difference, to_onnx
from policy.program import camera_shapes, describe, export_program, largest_difference, to_bytes
from training.checkpoint import check_suites
from training.device import add_threads, use_threads

TOLERANCE = 1e-5  # of actions in [-1, 1], between the program and the policy in Python


def command() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--logdir", required=True, type=user_path, help="run directory that holds the checkpoint")
    parser.add_argument("--out", required=True, type=user_path, help="file to write, NAME.pt2 or NAME.onnx")
    parser.add_argument(
        "--agent", default="target", help="target; source, or source_1, source_2, ... (default: target)"
    )
    size_help = "of the images that the program will get, such as 96x72, or 96x72x1 if grey; of several cameras all "
    size_help += "(default: the dataset's)"
    parser.add_argument("--image_size", metavar="HxW", help=size_help)
    precision_help = "of the program (default: the run's, so that actions are those of evaluations; of .onnx: float32)"
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help=precision_help)
    device_help = "of the program, .pt2: cpu, cuda or cuda:1 (default: cpu; torch can move a program later)"
    parser.add_argument("--device", help=device_help)
    add_threads(parser)
    return parser


def image_size(text: str) -> tuple[int, ...]:
    """Height and width, and channels if they are given, from ``HxW`` or ``HxWxC``. Raises BadInput."""
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})(?:x([13]))?", text)
    shape = tuple(int(side) for side in match.groups() if side) if match else (0, 0)
    if not 1 <= min(shape[:2]) <= max(shape[:2]) <= 4096:
        raise BadInput(
            f"--image_size {text}: give height x width in pixels, from 1 to 4096, such as 96x72; 96x72x1 if grey"
        )
    return shape


def program_file(policy: PixelPolicy, out: Path, shape: tuple[int, ...] | None) -> tuple[bytes, float]:
    """The file of the kind of ``out``, and how far its actions are from the policy's."""
    program, about = export_program(policy, shape), describe(policy, shape)
    if out.suffix == ".onnx":
        file = to_onnx(program, about)
        return file, largest_onnx_difference(file, policy, shape)
    file = to_bytes(program, about)
    return file, largest_difference(file, policy)


def check(args: argparse.Namespace) -> None:
    """Raises BadInput on arguments that do not fit, or have no effect."""
    if args.out.suffix not in (".pt2", ".onnx") or args.out.is_dir():
        raise BadInput(f"--out {args.out}: give the name of a file that ends in .pt2 or .onnx")
    if args.out.suffix == ".onnx":
        check_onnx(f"--out {args.out}")
        if args.device:
            raise BadInput(
                f"--device has no effect on {args.out}, whose user chooses ONNX Runtime's provider; remove it"
            )
        if args.precision == "bfloat16":
            raise BadInput(f"--precision bfloat16: {args.out} can only be float32; remove it")


def main(arguments: list[str] | None = None) -> None:
    args = command().parse_args(arguments)
    check(args)
    size = image_size(args.image_size) if args.image_size else None
    precision = "float32" if args.out.suffix == ".onnx" else args.precision
    device = args.device or "cpu"
    policy = load_policy(args.logdir, args.agent, device=device, precision=precision)
    try:
        check_suites(args.logdir, (args.agent,))
    except BadInput as error:
        print(f"note: {error}. The policy itself needs no simulator", file=sys.stderr)
    use_threads(args.threads)
    with warnings.catch_warnings():  # about torch.export's own parts
        warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
        file, difference = program_file(policy, args.out, size)
    if not difference <= TOLERANCE:
        raise BadInput(
            f"the program's actions differ from the policy's by {difference:.1g} (limit {TOLERANCE:.0g}); nothing was "
            f"written; use policy.load_policy, and report this"
        )
    write_atomically(args.out, lambda out: out.write(file))
    given = ", ".join(
        f"{key}={value!r}" for key, value in {"precision": precision, "device": args.device}.items() if value
    )
    shapes = {name: "x".join(map(str, shape)) for name, shape in camera_shapes(policy, size).items()}
    images = shapes.get("image") or ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    states = f", states {', '.join(policy.states)}" if policy.states else ""
    print(
        f"{args.out}: {policy.task or policy.name}, images {images}{states}, {policy.action_dim} actions, "
        f"{policy.agent.config.precision}; actions are those of load_policy{f'(..., {given})' if given else ''}, "
        f"largest difference {difference:.1g}"
    )


if __name__ == "__main__":
    exit_on_bad_input(main)
