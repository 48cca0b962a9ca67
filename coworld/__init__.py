"""The trained policy in a program of your own: ``from coworld import load_policy`` (docs/deployment.md).

The modules of the project have short names, such as ``tools`` and ``models``, which a user's program may have too. So
they are imported here below the name ``coworld._project``: in them, and only in them, ``import tools`` means
``coworld._project.tools``.
"""

import builtins
import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_PREFIX = f"{__name__}._project"
_INSTALLED = Path(__file__).parent / "_project"
_ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent  # that of a clone
_PARTS = {path.stem for path in _ROOT.glob("*.py")} | {path.parent.name for path in _ROOT.glob("*/__init__.py")}


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """What ``import`` does in a module of the project (see `builtins.__import__`)."""
    part = name.partition(".")[0]
    if level or part not in _PARTS:
        return builtins.__import__(name, globals, locals, fromlist, level)
    module = builtins.__import__(f"{_PREFIX}.{name}", globals, locals, fromlist)
    return module if fromlist else sys.modules[f"{_PREFIX}.{part}"]


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


class _Finder:
    """Finds the modules of the project below ``coworld._project``."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name == _PREFIX:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(_ROOT)]
            return spec
        spec = PathFinder.find_spec(name, path) if name.startswith(f"{_PREFIX}.") else None
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder)
_hook = sys.excepthook
try:
    _policy = importlib.import_module(f"{_PREFIX}.policy")
    BadInput = importlib.import_module(f"{_PREFIX}.tools").BadInput
finally:
    sys.excepthook = _hook  # the project's own, for its commands, is not for the user's program
PixelPolicy, load_policy = _policy.PixelPolicy, _policy.load_policy

__all__ = ["BadInput", "PixelPolicy", "load_policy"]
