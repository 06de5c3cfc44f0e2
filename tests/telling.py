"""Runs told document by document, as a beamline tells them, for the tests of faults.

A `Teller` knows the beamline's side only: it exposes frames, rewinds, changes its
mind, and says so in documents. What is to become of them is `expected`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import event_model
import numpy as np
from numpy.typing import NDArray

from ebl_stream.simulation.devices import DATA, THETA, FrameFile

Document: TypeAlias = tuple[str, dict[str, Any]]
Image: TypeAlias = NDArray[Any]

ROWS, COLUMNS, CENTER = 4, 16, 7.5
FLAT, DARK = 4000.0, 90.0
GOLDEN = math.pi * (math.sqrt(5) - 1) / 2

Oddity: TypeAlias = Literal[
    "",
    "nan_angle",
    "infinite_angle",
    "no_angle",
    "far_angle",
    "zero",
    "saturated",
    "nan_image",
    "wrong_shape",
    "wrong_dtype",
]
IN_FILES = ("", "nan_angle", "infinite_angle", "far_angle", "zero", "saturated")
"""Oddities that a file can hold."""

_DISCS = ((1.5, -1.0, 3.0, 0.08), (-2.5, 1.5, 1.6, 0.15))
"""x, y, radius (px), density (1/px)."""


def shadow(theta: float) -> NDArray[np.float64]:
    """Line integrals ``(row, column)`` of two discs; the lower rows see less."""
    s = np.arange(COLUMNS) - CENTER
    line = np.zeros(COLUMNS)
    for x, y, radius, density in _DISCS:
        off = s - x * math.cos(theta) - y * math.sin(theta)
        line += 2 * density * np.sqrt(np.clip(radius**2 - off**2, 0, None))
    return np.linspace(1.0, 0.4, ROWS)[:, None] * line


@dataclass
class Teller:
    """One run, told by its detector and its motor.

    Parameters
    ----------
    seed : int
        Of the noise, and of the uid.
    folder : Path, optional
        Frames go to a file there, and datums name them; else they are in the events.
    """

    seed: int
    folder: Path | None = None
    dtype: str = "<u2"
    promised: int | None = None
    wild_times: bool = False
    seq: int = 1
    """Number of the next event."""
    highest: int = 0
    n_flats: int = 0
    n_darks: int = 0
    images: list[Image] = field(default_factory=list)
    """What is in the file."""
    angles: list[float] = field(default_factory=list)
    """The same, rad."""

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        start = {} if self.promised is None else {"n_projections": self.promised}
        self._run = event_model.compose_run(metadata=start)
        self.uid: str = self._run.start_doc["uid"]
        self._streams: dict[str, Any] = {}
        self._resources: list[Any] = []
        self._file: FrameFile | None = None
        self._path = (self.folder or Path()) / f"{self.uid}.h5"
        self.has_stopped = False
        self.told: set[str] = set()
        """Uids of its documents."""

    # ------------------------------------------------------------- documents

    def start(self) -> Iterator[Document]:
        yield self._at("start", self._run.start_doc)
        yield from self.describe("primary")
        if self.folder is not None:
            self._file = FrameFile(self._path, (ROWS, COLUMNS))
            for key, dataset in (("image", DATA), ("theta", THETA)):
                resource = self._run.compose_stream_resource(
                    mimetype="application/x-hdf5",
                    uri=f"file://localhost{self._path}",
                    data_key=key,
                    parameters={"dataset": dataset},
                )
                self._resources.append(resource)
                yield self._at("stream_resource", resource.stream_resource_doc)

    def describe(self, stream: str) -> Iterator[Document]:
        """Describe a stream, for the first time or once more."""
        of_file = {"external": "STREAM:"} if self._streams_to_file(stream) else {}
        shape = [ROWS, COLUMNS]
        keys: dict[str, Any] = {
            "image": {"dtype": "array", "shape": shape, "source": "t", **of_file}
        }
        if stream == "primary":
            keys["theta"] = {"dtype": "number", "shape": [], "source": "t", **of_file}
            keys["theta"]["units"] = "rad"
        described = self._run.compose_descriptor(stream, keys, validate=False)
        self._streams[stream] = described
        yield self._at("descriptor", described.descriptor_doc)

    def expose(self, n: int, oddity: Oddity = "") -> Iterator[Document]:
        """Take ``n`` projections, the first one odd."""
        if self.folder is not None:
            yield from self._stream(n, oddity if oddity in IN_FILES else "")
            return
        for k in range(n):
            image, theta = self._shot(oddity if k == 0 else "")
            data: dict[str, Any] = {"image": image, "theta": theta}
            if oddity == "no_angle" and k == 0:
                del data["theta"]
            yield self._event("primary", self.seq, data)
            self._passed(1)

    def rewind(self, n: int) -> None:
        """Go back by some events, as a RunEngine that is resumed."""
        self.seq = max(1, self.seq - n)

    def reference(
        self, stream: Literal["flats", "darks"], n: int
    ) -> Iterator[Document]:
        if stream not in self._streams:
            yield from self.describe(stream)
        done = self.n_flats if stream == "flats" else self.n_darks
        level = FLAT if stream == "flats" else DARK
        for seq in range(done + 1, done + n + 1):
            image = np.full((ROWS, COLUMNS), level, "<u2")
            yield self._event(stream, seq, {"image": image})
        if stream == "flats":
            self.n_flats += n
        else:
            self.n_darks += n

    def stop(self, status: str = "success") -> Iterator[Document]:
        counts = {"primary": self.highest, "flats": self.n_flats, "darks": self.n_darks}
        self.has_stopped = True
        stop = self._run.compose_stop(exit_status=status) | {
            "num_events": {name: n for name, n in counts.items() if n}
        }
        yield self._at("stop", stop)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    # --------------------------------------------------------------- details

    def _streams_to_file(self, stream: str) -> bool:
        return self.folder is not None and stream == "primary"

    def _event(self, stream: str, seq: int, data: dict[str, Any]) -> Document:
        event = {
            "uid": f"{self.uid}-{stream}-{self._rng.integers(2**60)}",
            "descriptor": self._streams[stream].descriptor_doc["uid"],
            "seq_num": seq,
            "data": data,
            "timestamps": dict.fromkeys(data, 0.0),
            "filled": {},
        }
        return self._at("event", event)

    def _stream(self, n: int, oddity: Oddity) -> Iterator[Document]:
        assert self._file is not None
        first = len(self.images)
        for k in range(n):
            image, theta = self._shot(oddity if k == 0 else "", ahead=k)
            self._file.append(image, theta)
            self.images.append(image)
            self.angles.append(theta)
        for resource in self._resources:
            datum = resource.compose_stream_datum(
                indices={"start": first, "stop": first + n},
                seq_nums={"start": self.seq, "stop": self.seq + n},
                descriptor=self._streams["primary"].descriptor_doc,
                validate=False,
            )
            # Event-model counts datums of a resource; a name of their own is safer.
            yield self._at("stream_datum", datum | {"uid": f"{datum['uid']}@{first}"})
        self._passed(n)

    def _passed(self, n: int) -> None:
        self.seq += n
        self.highest = max(self.highest, self.seq - 1)

    def _shot(self, oddity: Oddity, ahead: int = 0) -> tuple[Image, float]:
        theta = (self.seq + ahead) * GOLDEN % math.pi
        counts = (FLAT - DARK) * np.exp(-shadow(theta))
        image = (self._rng.poisson(counts) + DARK).astype(self.dtype)
        match oddity:
            case "nan_angle":
                theta = math.nan
            case "infinite_angle":
                theta = math.inf
            case "far_angle":
                theta += 2 * math.pi * 10
            case "zero":
                image[:] = 0
            case "saturated":
                image[:] = 65_535
            case "nan_image":
                image = np.full((ROWS, COLUMNS), np.nan, "<f4")
            case "wrong_shape":
                image = image[:, :-2]
            case "wrong_dtype":
                image = image.astype("<i4")
        return image, theta

    def _at(self, name: str, doc: Any) -> Document:
        self.told.add(doc["uid"])
        time = float(self._rng.normal(0, 1e9)) if self.wild_times else 1.7e9
        return name, {**doc, **({"time": time} if name != "stream_datum" else {})}
