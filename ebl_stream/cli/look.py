"""Ask a run that is under way to show something first."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from ebl_stream import strict_json
from ebl_stream.engine.viewer import Wishes, write_wishes
from ebl_stream.errors import InputError


def find_run(out: Path, run: str | None) -> Path:
    """Return the folder of a run: the newest one that is not over, if not named.

    Parameters
    ----------
    out : Path
        Folder of the results.
    run : str, optional
        The beginning of its processed uid.

    Raises
    ------
    InputError
        There is none, or the beginning fits several.
    """
    folders = sorted(
        (path.parent for path in out.glob("*/metadata.json")),
        key=lambda folder: folder.stat().st_mtime,
    )
    if run is None:
        folders = [folder for folder in folders if _state(folder) == "running"][-1:]
        if not folders:
            raise InputError(f"no run is under way in {out}; name one with --run")
        return folders[0]
    fitting = [folder for folder in folders if folder.name.startswith(run)]
    if len(fitting) != 1:
        raise InputError(f"--run {run!r}: fits {len(fitting)} runs in {out}")
    return fitting[0]


def _state(folder: Path) -> str:
    try:
        return str(strict_json.load(folder / "metadata.json").get("state"))
    except (OSError, ValueError, AttributeError):
        return "unreadable"


def ask(
    folder: Path,
    rows: tuple[int, int] | None,
    window: str | None,
    plane: tuple[float, ...],
) -> Wishes:
    """Write down what is wanted; returns it.

    Parameters
    ----------
    folder : Path
        Of the run.
    rows : (int, int), optional
        Half-open range of slices.
    window : str, optional
        Low-pass of the previews.
    plane : (float, ...)
        ``z, y, x`` of a voxel and of the normal; empty for none.

    Raises
    ------
    InputError
        The wish makes no sense, or the folder cannot be written to.
    """
    try:
        cut = {"point": plane[:3], "normal": plane[3:]} if plane else None
        wishes = Wishes.model_validate({"rows": rows, "window": window, "plane": cut})
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"]) from None
    try:
        write_wishes(folder, wishes)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from None
    return wishes
