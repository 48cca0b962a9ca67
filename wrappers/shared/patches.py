"""Patch a single module of a simulator package, without editing it or changing anything global."""

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
