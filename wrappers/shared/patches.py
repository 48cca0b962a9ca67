"""Mending simulator packages from outside: nothing installed is edited, nothing global is changed."""

from typing import Any

import numpy as np


class NumpyWith:
    """NumPy with some names replaced, to stand in as the ``np`` of a single module.

    ``module.np = NumpyWith(random=RandomState(0))`` gives that module its own random numbers, and leaves
    NumPy's to everybody else.
    """

    def __init__(self, **replaced: Any):
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)
