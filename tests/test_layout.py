"""The layout of the code: import direction, sizes of files and functions, names of packages."""

import ast
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, command

COMMANDS = {"co_training", "collect", "evaluate", "dataset", "report", "analyse", "export"}
MAY_IMPORT = {  # a part -> the parts that it may import, besides itself
    "tools": set(),
    "ops": set(),
    "networks": {"tools", "ops"},
    "wrappers": {"tools"},
    "replay": {"tools"},
    "config": {"tools", "wrappers", "replay"},
    "dreamer_v3": {"tools", "ops", "networks", "config"},
    "senses": {"tools", "networks", "config", "dreamer_v3"},
    "models": {"tools", "ops", "networks", "config", "dreamer_v3", "senses"},
    "agents": {"tools", "ops", "networks", "config", "dreamer_v3", "senses", "models"},
    "training": {"tools", "networks", "wrappers", "replay", "config", "senses", "models", "agents"},
}
MAY_IMPORT["policy"] = set(MAY_IMPORT)
MAY_IMPORT["coworld"] = set()  # it imports by name, see there
MAY_IMPORT["analysis"] = set(MAY_IMPORT)
MAY_IMPORT["sweeping"] = {*MAY_IMPORT, "analysis"}
MAY_IMPORT |= {command: {*MAY_IMPORT, "analysis"} - COMMANDS for command in sorted(COMMANDS)}
MAY_IMPORT["collect"].add("co_training")  # the loops of the online phases
MAY_IMPORT["sweep"] = {*MAY_IMPORT, "co_training", "collect"}  # it runs these two, and checks their arguments first
PARTS = set(MAY_IMPORT)


def sources() -> list[Path]:
    """The Python files of the project, without tests and benchmarks."""
    inside = [path for part in PARTS for path in (ROOT / part).rglob("*.py")]
    return sorted([*ROOT.glob("*.py"), *inside])


def imported_parts(path: Path) -> Iterator[tuple[str, int]]:
    """The parts of this project that a file imports anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [node.module]
        else:
            continue
        yield from ((name.split(".")[0], node.lineno) for name in names if name.split(".")[0] in PARTS)


def test_every_part_is_known():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages | {path.stem for path in ROOT.glob("*.py")} == PARTS
    assert len(list(ROOT.glob("*.py"))) <= 12


def test_imports_go_one_way():
    wrong = []
    for path in sources():
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name, line in imported_parts(path):
            if name != part and name not in MAY_IMPORT[part]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def test_no_name_hides_an_installed_package():
    others = {name for name, by in importlib.metadata.packages_distributions().items() if by != ["coworld"]}
    installed = others | sys.stdlib_module_names
    assert {part for part in PARTS if part in installed} == set()
    assert not PARTS & {"datasets", "wandb", "gym", "minari", "ray"}


def test_wrappers_and_replay_import_neither_torch_nor_a_simulator():
    """Simulators run in processes that must not load PyTorch; task names are checked before any simulator is loaded."""
    heavy = {"torch", "mujoco", "dm_control", "metaworld"}
    code = f"import sys, wrappers, replay; print(sorted({heavy} & set(sys.modules)))"
    assert command("-c", code).stdout.strip() == "[]"


def test_commands_that_draw_nothing_do_not_load_matplotlib():
    """It takes a second or more. Only analysis/ imports it when it is imported itself."""
    drawing, found = {"matplotlib", "sklearn", "training.pictures"}, set()
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            if any(name in drawing or name.startswith("matplotlib.") for name in names):
                found.add(str(path.relative_to(ROOT)))
    assert {name for name in found if not name.startswith("analysis/")} == {"training/pictures.py"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} at line {node.lineno}"
