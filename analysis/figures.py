"""Pictures of a report: each is written twice, as PNG for a page and as PDF, with vectors, for a paper."""

from pathlib import Path

from matplotlib.figure import Figure

from tools import write_atomically
from training import pictures
from training.pictures import plt

PDF_FONTS = {"pdf.fonttype": 42}  # TrueType: conferences refuse matplotlib's default, Type 3


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``path``, a PNG, and a PDF of the same name, and close the figure. The same figure gives the same files."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # the layout is computed once, not for each file
    with plt.rc_context(PDF_FONTS):
        options = {"format": "pdf", "metadata": {"CreationDate": None}}
        write_atomically(path.with_suffix(".pdf"), lambda file: figure.savefig(file, **options))
    pictures.save_figure(figure, path)


def colours(count: int) -> list[tuple[float, float, float]]:
    """Colours for ``count`` curves, repeated if there are more. Grey is for the random policy."""
    found = plt.get_cmap("tab10" if count < 10 else "tab20").colors
    return [colour for colour in found if len(set(colour)) > 1]


def styles(names: list[str]) -> dict[str, dict[str, object]]:
    """A colour and a marker for each name: all pairs are different up to 72 names."""
    cycle = colours(len(names))
    return {
        name: {"color": cycle[i % len(cycle)], "marker": "os^D"[i // len(cycle) % 4]} for i, name in enumerate(names)
    }
