"""The package coworld: `load_policy` beside a user's own modules tools, models and policy, in a clone and installed."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_policy import frames, save_run

import coworld
import policy
import tools

SCRIPT = """import sys
hook = sys.excepthook
import numpy as np
from coworld import load_policy
import models, policy, tools
assert (models.A, policy.B, tools.C) == (1, 2, 3) and sys.excepthook is hook
act = load_policy("run")
np.save("actions.npy", [act(image) for image in np.load("frames.npy")])
try:
    import networks
except ModuleNotFoundError:
    print("networks is ours alone")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, dyn_discrete=0)
    return folder


def test_it_is_the_policy_of_the_clone_under_other_names(run: Path):
    ours, theirs = policy.load_policy(run), coworld.load_policy(run)
    assert type(theirs) is coworld.PixelPolicy and type(theirs) is not type(ours)
    for image in frames(3, 32, 32, 3):
        np.testing.assert_array_equal(theirs(image), ours(image))
    assert type(theirs).__module__ == "coworld._project.policy.pixel_policy"
    assert sys.modules["tools"] is tools and sys.modules["coworld._project.tools"] is not tools
    with pytest.raises(coworld.BadInput, match="no checkpoint"):
        coworld.load_policy(run / "none")


def test_the_package_has_every_module_of_the_clone():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {path.parent.relative_to(ROOT).parts for path in ROOT.glob("*/__init__.py")}
    found |= {path.parent.relative_to(ROOT).parts for path in ROOT.glob("*/*/__init__.py")}
    found = {".".join(("coworld", "_project", *parts)) for parts in found - {("coworld",)} if "tests" not in parts}
    assert sorted(known) == sorted({"coworld", "coworld._project"} | found)


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True])
def test_installed_in_the_users_folder(run: Path, tmp_path: Path, editable: bool):
    """``pip install`` of a copy of the clone into a small virtual environment, which borrows this one's packages."""
    kept = shutil.ignore_patterns(
        ".*", "runs", "data", "results", "examples", "build", "*.egg-info", "__pycache__", "docs"
    )
    clone, home = shutil.copytree(ROOT, tmp_path / "clone", ignore=kept), tmp_path / "home"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (packages / "borrowed.pth").write_text(str(Path(np.__file__).parents[1]))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *["-e"] * editable, clone], check=True, capture_output=True)
    top = {path.stem for path in packages.iterdir() if not path.name.startswith(("__editable__", "coworld-"))}
    assert top - {"borrowed", "__pycache__", "__editable___coworld_0_1_0_finder"} == (
        set() if editable else {"coworld"}
    )
    home.mkdir()
    for name, text in {"models": "A = 1", "policy": "B = 2", "tools": "C = 3"}.items():
        (home / f"{name}.py").write_text(text)
    (home / "mine.py").write_text(SCRIPT)
    images = frames(3, 32, 32, 3)
    np.save(home / "frames.npy", images)
    shutil.copytree(run, home / "run")
    done = subprocess.run([python, "mine.py"], cwd=home, capture_output=True, text=True, timeout=100)
    assert done.stdout == "networks is ours alone\n", done.stderr
    ours = policy.load_policy(run)
    np.testing.assert_allclose(np.load(home / "actions.npy"), [ours(image) for image in images], rtol=1e-4, atol=1e-5)
