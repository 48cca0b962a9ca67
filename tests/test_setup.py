"""The set-up: requirements/venv.sh, which makes .venv, and the requirements in parts."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from test_layout import sources

import collect
from sweeping import cluster
from tools import BadInput
from training.visuals import check_video_path
from wrappers.shared.background import Background

PARTS = sorted((ROOT / "requirements").glob("*.txt"))
HERE = "{}.{}.{}".format(*sys.version_info)


def pins(path: Path) -> dict[str, str]:
    """Name -> version of each line but comments. Every one is exact."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_each_version_is_in_one_place():
    names = [name.lower() for path in (ROOT / "requirements.txt", *PARTS) for name in pins(path)]
    assert len(names) == len(set(names)) > 20


def test_every_part_is_an_extra_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    files = {name: extra["file"] for name, extra in extras["optional-dependencies"].items()}
    assert files == {path.stem: [f"requirements/{path.name}"] for path in PARTS}


def test_what_is_imported_at_the_top_of_a_file_is_in_requirements_txt():
    """Packages of requirements/ are imported where they are used, after `tools.require`."""
    base = {re.sub(r"[-_.]+", "-", name).lower() for name in pins(ROOT / "requirements.txt")}
    distributions = importlib.metadata.packages_distributions()
    ours = {path.name.removesuffix(".py") for path in ROOT.iterdir()}
    wrong = []
    for path in sources():
        for node in ast.parse(path.read_text()).body:  # those in functions, `if` and `with` are left out
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - ours:
                found = {re.sub(r"[-_.]+", "-", one).lower() for one in distributions[name]}
                wrong += [f"{path.relative_to(ROOT)}: {name}"] * (not found & base)
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "part", "use"),
    [
        ("ray", "ray", lambda folder: cluster.connect(None, {"cpus": 1, "gpus": 0})),
        ("av", "formats", lambda folder: check_video_path(folder / "a.mp4")),
        ("av", "formats", lambda folder: Background(str(folder), 8)),
        (
            "stable_baselines3",
            "expert",
            lambda folder: collect.main(["--task", "walker_walk", "--out", str(folder / "x"), "--policy", "sac"]),
        ),
    ],
)
def test_a_missing_package_is_named_with_its_requirements(
    package: str, part: str, use: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "clip.mp4").touch()
    monkeypatch.setitem(sys.modules, package, None)  # then it cannot be imported
    monkeypatch.chdir(ROOT)
    with pytest.raises(BadInput, match=f" needs {package.replace('_', '-')}: pip install -r requirements/{part}.txt$"):
        use(tmp_path)
    assert package.replace("_", "-") in pins(ROOT / "requirements" / f"{part}.txt")


# requirements/venv.sh


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the script and requirements that need no package index."""
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "requirements" / "venv.sh", tmp_path / "requirements")
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "requirements" / "tests.txt").write_text("")
    return tmp_path


def venv(clone: Path, *files: str, python: object = "", path: object = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}", "PYTHON": str(python)}
    command = ["sh", "requirements/venv.sh", *files]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=200)


def fake(folder: Path, name: str, body: str) -> Path:
    """A program."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def made(clone: Path, version: str = "", *installed: str) -> Path:
    """A .venv as the script leaves it, with a Python that prints ``version`` and a pip that does nothing."""
    folder = clone / ".venv"
    (folder / "bin").mkdir(parents=True)
    fake(folder / "bin", "python", f'[ "$1" = --version ] && echo Python {version or HERE}; exit 0')
    (folder / "installed").mkdir()
    (folder / "installed" / "python").write_text(".".join((version or HERE).split(".")[:2]))
    for file in ("requirements.txt", *installed):
        shutil.copy(clone / file, folder / "installed")
    (folder / "ready").touch()
    (folder / "mine").touch()  # gone if the folder is replaced
    return folder


@pytest.mark.parametrize("version", ["2.7.18", "3.8.10", "3.10.2", "3.13.0", "4.0.1"])
def test_an_unsuitable_python_is_refused_before_anything_is_made(clone: Path, version: str):
    old = fake(clone / "bin", "python3", f"echo Python {version}")
    for options in ({"path": old.parent}, {"python": old}):
        result = venv(clone, **options)
        assert result.returncode == 2 and not (clone / ".venv").exists()
        assert result.stderr.startswith("error: Python 3.11 or 3.12 is needed, and ")
        assert version in result.stderr and str(old) in result.stderr and "make PYTHON=" in result.stderr
        assert result.stderr.count("\n") == 1


def test_the_versions_are_those_of_the_package():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    script = (ROOT / "requirements" / "venv.sh").read_text()
    assert needed == ">=3.{},<3.{}".format(*re.search(r"OLDEST=(\d+) NEWEST=12", script).groups(), 13)


def test_what_is_no_python_is_refused(clone: Path):
    assert "is not there" in venv(clone, python=clone / "nothing").stderr
    assert "is no Python" in venv(clone, python=fake(clone / "bin", "p", "echo hello")).stderr


def test_a_missing_ensurepip_names_its_package(clone: Path):
    body = 'case "$1$2" in --version) echo Python 3.11.2;; -cimport\\ os*) echo "$0";; -cimport*) exit 1;; esac'
    result = venv(clone, python=fake(clone / "bin", "python3", body))
    assert result.returncode == 2 and "apt-get install python3.11-venv" in result.stderr, result
    assert result.stderr.count("\n") == 1 and not (clone / ".venv").exists()


def test_a_complete_venv_stays_as_it_is(clone: Path):
    folder = made(clone)
    old = fake(clone / "bin", "python3", "echo Python 3.8.10")
    result = venv(clone, path=old.parent)  # the Python on the path is not asked
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (folder / "mine").exists() and (folder / "ready").exists()
    assert venv(clone, "requirements/tests.txt").returncode == 0
    assert (folder / "mine").exists() and not (folder / "ready").exists()  # the Makefile writes it again
    assert (folder / "installed" / "tests.txt").exists()


def older(clone: Path) -> None:
    made(clone)
    (clone / "requirements.txt").write_text("# of a newer commit\n")


def older_part(clone: Path) -> None:
    made(clone, "", "requirements/tests.txt")
    (clone / "requirements" / "tests.txt").write_text("# of a newer commit\n")


def half(clone: Path) -> None:
    (made(clone) / "installed" / "requirements.txt").unlink()


def upgraded(clone: Path) -> None:
    (made(clone) / "installed" / "python").write_text("3.10")


@pytest.mark.parametrize(
    ("state", "python", "reason"),
    [
        (older, "", "requirements.txt has changed"),
        (older_part, "", "requirements/tests.txt has changed"),
        (half, "", "it was not finished"),
        (upgraded, "", "Python 3.10, which made it, is gone"),
        (lambda clone: made(clone, "3.9.18"), "", "it has Python 3.9.18"),
        (lambda clone: made(clone, "3.12.99"), "3.11.98", "it has Python 3.12.99, not 3.11.98"),
    ],
)
def test_a_venv_that_cannot_be_used_is_replaced(clone: Path, state: Callable, python: str, reason: str):
    """By a Python that stands for a real one: it makes an empty folder in place of a virtual environment."""
    state(clone)
    body = (
        f'case "$1$2" in --version) echo Python {python or HERE};; -cimport\\ os*) echo "$0";; '
        f'-mvenv) mkdir -p .venv/bin && cp "$0" .venv/bin/python;; esac; exit 0'
    )
    new = fake(clone / "bin", "python3", body)
    result = venv(clone, python=new if python else "", path=new.parent)
    assert result.returncode == 0 and f"replacing .venv: {reason}" in result.stderr, result
    assert not (clone / ".venv" / "mine").exists() and not (clone / ".venv" / "ready").exists()
    assert (clone / ".venv" / "installed" / "requirements.txt").read_text() == (clone / "requirements.txt").read_text()
    assert venv(clone).stderr == ""  # complete now


def test_a_link_is_replaced_and_what_it_points_to_stays(clone: Path, tmp_path: Path):
    (clone / "shared").mkdir()
    (clone / ".venv").symlink_to("shared")
    (clone / "shared" / "mine").touch()
    body = 'case "$1$2" in --version) echo Python 3.11.2;; -cimport\\ os*) echo "$0";; -mvenv) mkdir -p .venv;; esac'
    venv(clone, python=fake(clone / "bin", "python3", body))
    assert (clone / "shared" / "mine").exists() and not (clone / ".venv").is_symlink()


@pytest.mark.slow
def test_a_real_venv(clone: Path):
    """Made, replaced because a package is missing, and not replaced while a process uses it."""
    (clone / "requirements.txt").write_text("no-such-package-of-coworld==0\n")
    failed = venv(clone, python=sys.executable)
    assert failed.returncode == 2 and "pip could not install requirements.txt" in failed.stderr.splitlines()[-1]
    assert not (clone / ".venv" / "installed" / "requirements.txt").exists()
    (clone / "requirements.txt").write_text("# nothing\n")
    again = venv(clone)
    assert again.returncode == 0 and "replacing .venv: it was not finished" in again.stderr, again
    python = clone / ".venv" / "bin" / "python"
    code = (
        "import mmap; f = open('.venv/pyvenv.cfg'); m = mmap.mmap(f.fileno(), 0, prot=1); print(1, flush=True); input()"
    )
    with subprocess.Popen([python, "-c", code], cwd=clone, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        user.stdout.readline()
        (clone / "requirements.txt").write_text("# newer\n")
        refused = venv(clone)
        assert refused.returncode == 2 and f"process {user.pid} uses it" in refused.stderr and python.exists()
        user.stdin.close()
    assert venv(clone, python=python).returncode == 0  # its own Python is not there to make the next one
    assert (clone / ".venv" / "installed" / "requirements.txt").read_text() == "# newer\n" and python.exists()
