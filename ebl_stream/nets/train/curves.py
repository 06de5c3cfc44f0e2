"""Learning curves as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

# The object-oriented interface: no display, nothing global.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ebl_stream.nets.train.loop import Course


def draw(course: Course, title: str, path: Path) -> None:
    """Draw every loss over the steps, and mark the weights that were kept.

    Parameters
    ----------
    course : Course
    title : str
    path : Path
        A PNG, which appears whole.

    Raises
    ------
    OSError
        It cannot be written.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in _names(course.curve):
        points = [(row["step"], row[name]) for row in course.curve if name in row]
        width = 2.0 if name == "held_out" else 1.0
        axes.plot(*zip(*points, strict=True), label=name, linewidth=width)
    axes.axvline(course.best_step, color="gray", linestyle=":", label="kept")
    if all(row[name] > 0 for row in course.curve for name in row):
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.legend()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(draft, format="png", dpi=120)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _names(curve: Sequence[dict[str, float]]) -> list[str]:
    found = dict.fromkeys(name for row in curve for name in row)
    return [name for name in found if name != "step"]
