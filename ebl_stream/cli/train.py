"""Train a net: lessons from everywhere, the loop, and what is left on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ebl_stream.cli.plain_text import printable
from ebl_stream.errors import InputError
from ebl_stream.nets import zoo
from ebl_stream.nets.apply import device, has_bfloat16, one_thread
from ebl_stream.nets.architecture import Architecture
from ebl_stream.nets.card import Kind
from ebl_stream.nets.train import curves
from ebl_stream.nets.train.lessons import Lessons
from ebl_stream.nets.train.loop import Course, Trained, Training
from ebl_stream.nets.train.recipe import Adversary, Recipe
from ebl_stream.simulation.library import HELD_SEED, TRAIN_SEED, Library
from ebl_stream.training_data import scans, simulated, tomogan_hdf5

HELD_SCANS = 4
"""Simulated scans learned from, for one held out."""

Settings = Mapping[str, Any]


class TrainView:
    """Show on stderr how a training gets on: a bar, or lines without a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, markup=False, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> TrainView:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def scans(self, done: int, total: int) -> None:
        """Note simulated scans."""
        self._bar.update(
            self._task, description="simulated scans", completed=done, total=total
        )
        if not self.console.is_terminal and (done % 50 == 0 or done == total):
            self.say(f"{done}/{total} simulated scans")

    def course(self, course: Course, steps: int) -> None:
        """Note a look at the held-out slices."""
        row = course.curve[-1]
        losses = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "step")
        words = f"step {course.step}/{steps}: {losses}"
        if course.best_step == course.step:
            words += " (best)"
        self._bar.update(
            self._task, description="steps", completed=course.step, total=steps
        )
        self.say(words)

    def say(self, words: str) -> None:
        """Print one line."""
        self.console.print(printable(words), soft_wrap=True)


def fit(kind: Kind, command: str, settings: Settings) -> dict[str, Any]:
    """Train a net, and leave it on disk with its card and its learning curves.

    Parameters
    ----------
    kind : str
    command : str
        What makes it again, for the card.
    settings : mapping
        The options of `ebl-stream train`, by name.

    Returns
    -------
    dict
        Plain JSON: where it is, and how good.

    Raises
    ------
    InputError
        The data or the settings are wrong.
    """
    one_thread()
    out, name = settings["out"], settings["name"] or kind
    recipe = _recipe(kind, settings)
    path = out / f"{name}.checkpoint.safetensors"
    start, key = _start(recipe, settings["warm"])
    with TrainView() as view:
        lessons = _lessons(kind, settings, view)
        training = Training(
            recipe,
            lessons,
            path,
            start=start,
            device=device().type,
            key=f"{key} {json.dumps(lessons.about, sort_keys=True)}",
        )
        if training.course.step:
            view.say(f"{path}: goes on after step {training.course.step}")
        trained = training.run(lambda course: view.course(course, recipe.steps))
    weights = zoo.save(
        out,
        trained.state,
        name=name,
        kind=kind,
        architecture=recipe.architecture,
        data={**lessons.about, "warm_start": key or None},
        steps=trained.course.step,
        metrics=trained.metrics,
        licence=settings["licence"],
        command=command,
    )
    curves.draw(trained.course, name, out / f"{name}.png")
    path.unlink(missing_ok=True)
    return _made(name, weights, trained)


def write_library(
    path: Path, *, families: str, scans: int, columns: int, rows: int, seed: int
) -> int:
    """Write simulated pairs; return how many."""
    train, held = _libraries(families, scans, seed, columns, rows)
    tomogan_hdf5.write(path, train.known(), held.known())
    return (train.scans + held.scans) * rows


def summary(made: Mapping[str, Any]) -> str:
    """Return what came of a training, for people."""
    gains = [
        f"  {name:32} {value:+.2f} dB"
        for name, value in made["metrics"].items()
        if "gain_db" in name
    ]
    early = ", stopped early" if made["stopped_early"] else ""
    first = f"{made['weights']}: {made['steps']} steps{early}, best at {made['best']}"
    return printable("\n".join([first, *gains, f"  curves {made['curves']}"]))


def _made(name: str, weights: Path, trained: Trained) -> dict[str, Any]:
    return {
        "name": name,
        "weights": str(weights),
        "card": str(weights.with_suffix(".json")),
        "curves": str(weights.with_suffix(".png")),
        "steps": trained.course.step,
        "best": trained.course.best_step,
        "stopped_early": trained.stopped_early,
        "metrics": trained.metrics,
    }


def _recipe(kind: Kind, settings: Settings) -> Recipe:
    adversary = None
    if kind == "tomogan":
        adversary = Adversary(
            weight=settings["adversarial"],
            loss=settings["gan"],
            features=settings["features"],
            steps=settings["discriminator_steps"],
            pretrain=settings["pretrain"],
        )
    precision = settings["precision"]
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16() else "float32"
    depth = settings["depth"] or (5 if kind == "noise2inverse" else 3)
    same = ("steps", "batch", "crop", "rate", "schedule", "check_every", "patience")
    try:
        return Recipe(
            kind=kind,
            architecture=Architecture(
                kind=settings["net"], depth=depth, width=settings["width"]
            ),
            adversary=adversary,
            pixel=settings.get("pixel", "mse"),
            precision=precision,
            seed=settings["seed"],
            **{key: settings[key] for key in same},
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"--{where}: {first['msg']}") from None


def _lessons(kind: Kind, settings: Settings, view: TrainView) -> Lessons:
    how = scans.How(settings["profile_name"], dict(settings["sets"]), settings["rows"])
    found = Lessons((), ())
    for address in settings["data"]:
        if tomogan_hdf5.is_layout(Path(address)):
            found += tomogan_hdf5.lessons(Path(address))
            continue
        view.say(f"{address}: is replayed")
        found += scans.lessons(
            kind,
            address,
            how,
            target=settings["target"],
            repeat=settings["repeat"],
            rotate_deg=settings["rotate_deg"],
        )
    if settings["library"]:
        train, held = _libraries(
            settings["library"], settings["scans"], settings["seed"]
        )
        cache = settings["cache"] or settings["out"] / "library"
        found += simulated.lessons(kind, train, held, cache=cache, report=view.scans)
    return found


def _libraries(
    families: str, scans: int, seed: int, columns: int = 256, rows: int = 12
) -> tuple[Library, Library]:
    """Return what is learned from and what is held out; their seeds never meet."""
    names = tuple(name.strip() for name in families.split(","))
    held = max(len(names), scans // HELD_SCANS)
    if seed + max(scans, held) > HELD_SEED - TRAIN_SEED:
        raise InputError(f"--seed and --scans: together at most {TRAIN_SEED:,}")
    return (
        Library(names, scans, TRAIN_SEED + seed, columns, rows),
        Library(names, held, HELD_SEED + seed, columns, rows),
    )


def _start(recipe: Recipe, warm: str | None) -> tuple[Any, str]:
    """Return the weights to begin with, and their hash."""
    if warm is None:
        return None, ""
    model = zoo.load(warm)
    if model.card.architecture != recipe.architecture:
        raise InputError(
            f"{warm} is a net of {model.card.architecture}, not of "
            f"{recipe.architecture}: see --net, --depth and --width"
        )
    return model.net.state_dict(), model.card.weights_sha256
