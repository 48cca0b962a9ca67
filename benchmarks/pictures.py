"""Draw the documentation's pictures of the simulators: docs/tasks.png and docs/render_full_fast.png.

python benchmarks/pictures.py [--out FOLDER]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file from anywhere

from tools import BadInput, Parser, exit_on_bad_input, write_atomically
from wrappers import make_env, parse_task

ROOT = Path(__file__).resolve().parent.parent
TASKS = (
    *("metaworld_door-close", "metaworld_button-press", "metaworld_window-close"),
    *("metaworld_handle-press", "metaworld_drawer-close", "metaworld_button-press-topdown"),
    *("robodesk_push_green", "robodesk_open_slide", "robodesk_open_drawer"),
    *("robodesk_upright_block_off_table", "dmc_walker_walk", "dmc_walker_downhill", "dmc_walker_uphill"),
    *("dmc_walker_nofoot", "dmc_cheetah_run", "dmc_cheetah_downhill"),
    *("dmc_cheetah_uphill", "dmc_cheetah_nopaw"),
)
# RoboDesk's tasks begin with the same frame, so they are shown solved: joints of the desk and what they then are.
SOLVED = {
    "robodesk_push_green": {"green_button": [-0.005], "green_light": [-0.005]},
    "robodesk_open_slide": {"slide_joint": [0.6]},
    "robodesk_open_drawer": {"drawer_joint": [-0.35]},
    "robodesk_upright_block_off_table": {"upright_block": [0.7, 0.75, 0.1, 0.7, 0.7, 0, 0]},
}
COMPARED = ("metaworld_door-close", "metaworld_drawer-close", "robodesk_push_green", "dmc_walker_walk")
TITLE, GAP = 30, 6  # pixels


def first_frame(task: str, size: int, render: str, seed: int = 0) -> np.ndarray:
    """The frame after the reset, (size, size, 3) uint8."""
    env = make_env(task, size=size, render=render)
    image = env.reset(seed=seed)[0]["image"]
    env.close()
    return image


def solved_frame(task: str, size: int) -> np.ndarray:
    """The frame of a RoboDesk task as it is when it is solved, (size, size, 3) uint8."""
    env = make_env(task, size=size, render="full")
    env.reset(seed=0)
    desk = env.unwrapped._desk
    for joint, position in SOLVED[task].items():
        desk.physics.named.data.qpos[joint] = position
    desk.physics.forward()
    image = desk.render()
    env.close()
    return image


def sheet(images: list[np.ndarray], titles: list[str], columns: int) -> Image.Image:
    """A grid of pictures of one size, each below its title."""
    size = images[0].shape[0]
    cell = size + GAP, size + TITLE + GAP
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        x, y = GAP + index % columns * cell[0], GAP + index // columns * cell[1]
        pen.text((x, y), title, fill="black", font=font)
        page.paste(Image.fromarray(image), (x, y + TITLE))
    return page


def tasks_sheet() -> Image.Image:
    """The first frame of each task, of RoboDesk's the solved one, at 144 pixels, which is large enough for people."""
    names = {"metaworld": "Meta-World", "robodesk": "RoboDesk", "dmc": "DMC"}
    titles = [f"{names[parse_task(task).suite]}\n{parse_task(task).name}" for task in TASKS]
    titles = [title.replace("RoboDesk", "RoboDesk, solved") for title in titles]
    images = [solved_frame(task, 144) if task in SOLVED else first_frame(task, 144, "full") for task in TASKS]
    return sheet(images, titles, columns=6)


def render_sheet() -> Image.Image:
    """The agent's images with each render setting: 64 pixels, enlarged without smoothing."""
    images, titles = [], []
    for render in ("full", "fast"):
        for task in COMPARED:
            images.append(first_frame(task, 64, render).repeat(3, 0).repeat(3, 1))
            titles.append(f"{render}\n{task}")
    return sheet(images, titles, columns=len(COMPARED))


def main() -> None:
    """Draw both pictures into the folder of --out."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder for the pictures; by default docs")
    folder = parser.parse_args().out
    try:
        folder.mkdir(parents=True, exist_ok=True)  # first, because drawing takes a while
    except OSError as error:
        raise BadInput(f"{folder}: cannot be made: {error.strerror}; give another --out") from error
    for name, draw in (("tasks", tasks_sheet), ("render_full_fast", render_sheet)):
        path, page = folder / f"{name}.png", draw()
        write_atomically(path, lambda file, page=page: page.save(file, format="png", optimize=True))
        print(f"{path}: {page.width}x{page.height}, {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    exit_on_bad_input(main)
