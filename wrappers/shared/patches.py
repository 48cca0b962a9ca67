"""Patch a single module of another package, without editing it or changing anything global."""

import importlib
from types import ModuleType
from typing import Any

import numpy as np


class NumpyWith:
    """NumPy with some names replaced, to use as the ``np`` of a single module.

    ``module.np = NumpyWith(random=RandomState(0))`` gives that module its own RNG. Other modules keep NumPy's.
    """

    def __init__(self, **replaced: Any):
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def import_without_gym_notice(name: str) -> ModuleType:
    """The module ``name``, which imports gym, imported without the notice that gym prints on import."""
    gym_notices = importlib.import_module("gym_notices.notices")
    notices, gym_notices.notices = gym_notices.notices, {}
    try:
        return importlib.import_module(name)
    finally:
        gym_notices.notices = notices
