"""The files that docs/extending.md prints. `DotEnv` and `SUITE` are those of its dots.py, a suite drawn by numpy.

Tests whose subject is not the simulator run on it (fixture `dots` of conftest.py): a step takes microseconds. Worker
processes import the suite from this module.
"""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def page_files() -> dict[str, str]:
    """The text of each file that the page prints, by name, in the page's order."""
    return dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL))


exec(compile(page_files()["dots.py"], str(PAGE), "exec"))  # defines DotEnv and SUITE in this module
