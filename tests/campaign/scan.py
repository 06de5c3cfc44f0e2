"""A small step scan whose frames lie in its events, and the detector's own record."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import event_model
import numpy as np
from numpy.typing import NDArray

from ebl_stream.simulation.phantom import Foam, angles_of
from ebl_stream.transport.documents import pack

ROWS, COLUMNS, N, CENTER = 16, 32, 40, 15.7
N_STILL = 2
"""Darks, and flats."""
I0 = 20_000.0
SETTINGS: dict[str, Any] = {
    "preprocess": ["flat_field", {"minus_log": {"clip": 1e-5}}],
    "geometry.rotation_center": CENTER,
    "refresh.every": 0.2,
    "refresh.slab_rows": 8,
    "preview.every": 0,
    "denoise": None,
    "segment": None,
    "quantify": None,
    "window.max_bytes": 2**28,
}
"""Changes of the profile ``demo``."""

Documents = list[tuple[str, dict[str, Any]]]


@cache
def frames() -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """Return projections ``[id, row, column]`` and theta, rad: always the same."""
    theta = angles_of("golden", N)
    foam, random = Foam(COLUMNS, ROWS), np.random.default_rng(1)
    shadows = foam.project(theta, CENTER)
    return random.poisson(I0 * np.exp(-shadows)).astype(np.uint16), np.asarray(theta)


@dataclass
class Doors:
    """How long documents took to hand over, s."""

    small: list[float] = field(default_factory=list)
    """Documents without pixels."""
    large: list[float] = field(default_factory=list)
    control: list[float] = field(default_factory=list)
    """The same documents packed without a door: what the machine is good for."""

    def timed(self, door: Callable[[str, Any], object]) -> Callable[[str, Any], None]:
        """Return a door that takes the time."""

        def send(name: str, doc: Any) -> None:
            begun = time.perf_counter()
            door(name, doc)
            took = time.perf_counter() - begun
            if name == "event":
                self.large.append(took)
                return
            self.small.append(took)
            begun = time.perf_counter()
            pack(name, doc)
            self.control.append(time.perf_counter() - begun)

        return send

    def figures(self) -> dict[str, float]:
        """Return p99 and largest, ms, of documents without pixels."""
        values = 1e3 * np.array(self.small or [0.0])
        return {
            "n": len(self.small),
            "p99_ms": round(float(np.percentile(values, 99)), 3),
            "max_ms": round(float(values.max()), 3),
            "control_max_ms": round(1e3 * max(self.control, default=0.0), 3),
        }


class Detector:
    """Exposes scans, and keeps a record of its own of what it exposed.

    Parameters
    ----------
    record : Path
        JSON lines for the checker.
    """

    def __init__(self, record: Path) -> None:
        self.record = record

    def scan(self, n: int = N) -> tuple[str, Documents]:
        """Return a new run's uid and its documents."""
        run = event_model.compose_run(metadata={"n_projections": n})
        uid = run.start_doc["uid"]
        documents: Documents = [("start", dict(run.start_doc))]
        still = np.zeros((ROWS, COLUMNS), np.uint16)
        for stream, level in (("darks", 0), ("flats", I0)):
            images = [still + np.uint16(level)] * N_STILL
            documents += self._stream(run, stream, images, np.zeros(N_STILL))
        images, theta = frames()
        repeats = -(-n // N)
        images, theta = np.tile(images, (repeats, 1, 1)), np.tile(theta, repeats)
        documents += self._stream(run, "primary", list(images[:n]), theta[:n])
        documents.append(("stop", dict(run.compose_stop())))
        with self.record.open("a") as file:
            for k in range(n):
                crc = zlib.crc32(images[k].tobytes())
                line = {"run": uid, "id": k, "crc": crc, "theta": float(theta[k])}
                file.write(json.dumps(line) + "\n")
        return uid, documents

    def _stream(self, run: Any, name: str, images: Any, theta: Any) -> Documents:
        image = {"dtype": "array", "shape": [ROWS, COLUMNS], "source": "test"}
        angle = {"dtype": "number", "shape": [], "source": "test", "units": "rad"}
        stream = run.compose_descriptor(
            name=name, data_keys={"image": image, "theta": angle}
        )
        documents: Documents = [("descriptor", dict(stream.descriptor_doc))]
        for pixels, radians in zip(images, theta, strict=True):
            event = stream.compose_event(
                data={"image": pixels, "theta": float(radians)},
                timestamps={"image": 0.0, "theta": 0.0},
                validate=False,
            )
            documents.append(("event", dict(event)))
        return documents


def paced(documents: Documents, pause_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield documents at the pace of a scan."""
    for document in documents:
        yield document
        time.sleep(pause_s)
