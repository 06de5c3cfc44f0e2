"""The nets that there are: a table, a card, and one from elsewhere made one of ours."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebl_stream.cli.plain_text import printable
from ebl_stream.errors import InputError
from ebl_stream.ingest.hdf5 import open_dataset
from ebl_stream.ingest.links import DAMAGE
from ebl_stream.ingest.opening import open_hdf5
from ebl_stream.nets import keras_import, zoo

MAX_KERAS_BYTES = 64 * 2**20


def table() -> list[dict[str, Any]]:
    """Load every shipped net; return its card, or under ``error`` why it cannot be."""
    rows: list[dict[str, Any]] = []
    for name in zoo.names():
        try:
            rows.append(show(name))
        except InputError as error:
            rows.append({"name": name, "error": str(error)})
    return rows


def show(name_or_path: str) -> dict[str, Any]:
    """Load a net; return its card, and how many parameters it has.

    Raises
    ------
    InputError
        It is not there, or not what its card says.
    """
    model = zoo.load(name_or_path)
    count = sum(value.numel() for value in model.net.state_dict().values())
    return {
        **model.card.model_dump(mode="json"),
        "parameters": count,
        "path": str(model.path),
        "verified": True,
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return what `ebl-stream models` prints."""
    if not rows:
        return "no nets are shipped"
    lines = [
        f"{'name':28} {'kind':14} {'net':20} {'parameters':>10} {'steps':>7}  SHA-256"
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"{row['name']:28} cannot be used: {row['error']}")
            continue
        net = "{kind}, {depth} x {width}".format_map(row["architecture"])
        lines.append(
            f"{row['name']:28} {row['kind']:14} {net:20} {row['parameters']:10,} "
            f"{row['steps']:7,}  {row['weights_sha256'][:12]} verified"
        )
    return printable("\n".join(lines))


def as_card(row: dict[str, Any]) -> str:
    """Return what `ebl-stream models NAME` prints."""
    return printable(
        "\n".join(f"{key:16} {value}" for key, value in row.items() if value != {})
    )


def import_keras(path: Path, out: Path) -> Path:
    """Make a Keras TomoGAN a net of ours; return the path of its weights.

    Raises
    ------
    InputError
        It is not TomoGAN's generator, too large, or one of its name is there.
    """
    path = path.resolve()
    name = re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_")[:64] or "net"
    if (out / f"{name}{zoo.CARD}").exists():
        raise InputError(f"{out / name}{zoo.CARD} is there already")
    try:
        found, sha256 = _read_keras(path)
    except InputError as error:
        words = str(error)
        where = "" if words.startswith(str(path)) else f"{path}: "
        raise InputError(f"{where}{words}") from None
    except (*DAMAGE, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read {path}: {why}") from None
    values = {"offset": keras_import.OFFSET, "gain": keras_import.GAIN}
    return zoo.save(
        out,
        found.state,
        name=name,
        kind="tomogan",
        architecture=found.architecture,
        data={
            "imported_from": path.name,
            "sha256": sha256,
            "grey_values": {"trained_on": "0 to 255", **values},
        },
        steps=0,
        metrics={},
        licence=keras_import.LICENCES.get(sha256, "not stated in the file"),
        command=f"ebl-stream models import {path.name} --out FOLDER",
    )


def _read_keras(path: Path) -> tuple[keras_import.Imported, str]:
    """Return the net, and the file's SHA-256."""
    if path.stat().st_size > MAX_KERAS_BYTES:
        raise InputError(f"larger than {MAX_KERAS_BYTES} bytes")
    with open_hdf5(path) as file:
        config = file.attrs.get("model_config")
        if not isinstance(config, str | bytes):
            raise InputError(
                "there is no model_config in it: weights of an unknown net"
            )

        def read(name: str, limit: int) -> NDArray[Any]:
            dataset = open_dataset(file, name, roots=())
            if dataset.dtype.kind != "f" or math.prod(dataset.shape) > limit:
                raise InputError(f"{name} is {dataset.dtype} {list(dataset.shape)}")
            return np.asarray(dataset[()])

        found = keras_import.convert(config, read)
        return found, hashlib.sha256(path.read_bytes()).hexdigest()
