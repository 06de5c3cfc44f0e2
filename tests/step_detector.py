"""A detector for step scans that writes HDF5 and tells of it by StreamDatum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from ophyd.sim import SynAxis
from ophyd.status import Status
from telling import COLUMNS, DARK, FLAT, ROWS, Image, shadow

from ebl_stream.simulation.devices import DATA, FrameFile


class BrokenShutterError(Exception):
    """The detector's hardware failed."""


class StepDetector:
    """Exposes one noisy frame of `shadow` each time it is triggered.

    Parameters
    ----------
    axis : SynAxis
        What the sample turns on, rad.
    folder : Path, optional
        Frames go to a file there; else they are in the events.
    fails_at : int, optional
        The exposure at which its hardware fails, from 0 on.
    """

    name = "detector"
    parent = None

    def __init__(
        self, axis: SynAxis, folder: Path | None = None, fails_at: int | None = None
    ) -> None:
        self.frames: list[Image] = []
        """All exposures since it was staged, the order of the file."""
        self.sees = "sample"
        """``sample``, ``beam`` or ``nothing``."""
        self.without_beam: set[int] = set()
        """Exposures during which the beam is lost."""
        self._axis = axis
        self._folder = folder
        self._fails_at = fails_at
        self._rng = np.random.default_rng(0)
        self._file: FrameFile | None = None
        self._resource: str | None = None
        self._n_told = 0

    # ------------------------------------------------------ Bluesky's protocols

    def stage(self) -> list[Any]:
        self.frames, self._n_told, self._resource = [], 0, None
        if self._folder is not None:
            self._path = self._folder / f"{uuid4()}.h5"
            self._file = FrameFile(self._path, (ROWS, COLUMNS))
        return [self]

    def unstage(self) -> list[Any]:
        if self._file is not None:
            self._file.close()
            self._file = None
        return [self]

    def trigger(self) -> Status:
        if len(self.frames) == self._fails_at:
            raise BrokenShutterError("it is stuck")
        level = FLAT - DARK if self.sees != "nothing" else 0.0
        if self.sees == "sample":
            level = level * np.exp(-shadow(self._axis.position))
        if len(self.frames) in self.without_beam:
            level = 0.0
        counts = self._rng.poisson(level, (ROWS, COLUMNS)) + DARK
        self.frames.append(counts.astype("<u2"))
        if self._file is not None:
            self._file.append(self.frames[-1], math.nan)
        status = Status()
        status.set_finished()
        return status

    def describe(self) -> dict[str, Any]:
        key: dict[str, Any] = {
            "source": "test",
            "dtype": "array",
            "shape": [ROWS, COLUMNS],
        }
        if self._file is not None:
            key |= {"external": "STREAM:", "dtype_numpy": "<u2"}
        return {"image": key}

    def read(self) -> dict[str, Any]:
        if self._file is not None:
            return {}
        return {"image": {"value": self.frames[-1], "timestamp": 0.0}}

    def describe_configuration(self) -> dict[str, Any]:
        return {}

    def read_configuration(self) -> dict[str, Any]:
        return {}

    def get_index(self) -> int:
        return len(self.frames)

    def collect_asset_docs(self, index: int | None = None) -> Iterator[Any]:
        if self._file is None:
            return
        if self._resource is None:
            self._resource = str(uuid4())
            yield (
                "stream_resource",
                {
                    "uid": self._resource,
                    "data_key": "image",
                    "mimetype": "application/x-hdf5",
                    "uri": f"file://localhost{self._path}",
                    "parameters": {"dataset": DATA},
                },
            )
        n = len(self.frames) if index is None else min(index, len(self.frames))
        if n > self._n_told:
            # What was exposed and then rewound, before an event, nobody tells of.
            indices = {"start": n - 1, "stop": n}
            yield (
                "stream_datum",
                {
                    "uid": f"{self._resource}/{n - 1}",
                    "stream_resource": self._resource,
                    "descriptor": "",
                    "indices": indices,
                    "seq_nums": {"start": 0, "stop": 0},
                },
            )
            self._n_told = n
