"""One small scan, told in every dialect: projections, references, angles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import event_model
import h5py
import numpy as np
from numpy.typing import NDArray

from ebl_stream.simulation.detector import DetectorModel
from ebl_stream.simulation.phantom import Foam

N, M, ROWS, COLUMNS, CENTER = 48, 3, 2, 32, 15.8
STEP = 180 / N
THETA = 5.5 + STEP * np.arange(N)
"""deg."""

PROJECTIONS = ("in_event", "nhw", "n1hw", "nmhw", "flat_m", "legacy")
REFERENCES = (
    *("before", "after", "between", "image_key", "other_run", "other_run_later"),
    *("file_of_profile", "file_of_start", "same_file"),
)
ANGLES = ("event", "same_file", "other_file", "other_stream", "list", "step", "stop")

Document = tuple[str, dict[str, Any]]


def frames() -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint16]]:
    """Return projections, flats and darks."""
    model = DetectorModel(ROWS, COLUMNS, seed=3)
    shadows = Foam(COLUMNS, ROWS, seed=3).project(np.deg2rad(THETA), CENTER)
    return model.projections(shadows), model.flats(4), model.darks(3)


@dataclass
class Run:
    """Documents of one run, composed step by step."""

    start: dict[str, Any]
    docs: list[Document] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bundle = event_model.compose_run(metadata=self.start)
        self.uid = self.bundle.start_doc["uid"]
        self.docs.append(("start", self.bundle.start_doc))
        self._descriptors: dict[str, Any] = {}

    def stream(self, name: str, keys: dict[str, Any]) -> None:
        bundle = self.bundle.compose_descriptor(name=name, data_keys=keys)
        self._descriptors[name] = bundle
        self.docs.append(("descriptor", bundle.descriptor_doc))

    def event(self, name: str, data: dict[str, Any], **more: Any) -> None:
        stamps = dict.fromkeys(data, 0.0)
        event = self._descriptors[name].compose_event(
            data=data, timestamps=stamps, validate=False, **more
        )
        self.docs.append(("event", event))

    def datums(
        self, name: str, key: str, path: Path, dataset: str, cuts: Sequence[int]
    ) -> None:
        """Tell of a dataset in the ranges of events between the cuts."""
        resource = self.bundle.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path}",
            data_key=key,
            parameters={"dataset": dataset},
        )
        self.docs.append(("stream_resource", resource.stream_resource_doc))
        for start, stop in pairwise(cuts):
            datum = resource.compose_stream_datum(
                indices={"start": start, "stop": stop},
                seq_nums={"start": start + 1, "stop": stop + 1},
                descriptor=self._descriptors[name].descriptor_doc,
                validate=False,
            )
            self.docs.append(("stream_datum", datum))

    def stop(self, **num_events: int) -> list[Document]:
        stop = self.bundle.compose_stop() | {"num_events": num_events}
        return [*self.docs, ("stop", stop)]


def image(shape: Sequence[int], external: str | None = None) -> dict[str, Any]:
    key = {"dtype": "array", "dtype_numpy": "<u2", "shape": list(shape), "source": "t"}
    return key | ({"external": external} if external else {})


def number(shape: Sequence[int] = (), external: str | None = None) -> dict[str, Any]:
    key = {"dtype": "number", "shape": list(shape), "source": "t", "units": "deg"}
    return key | ({"external": external} if external else {})


@dataclass
class Scan:
    """A scan in one dialect.

    Parameters
    ----------
    folder : Path
        Its files.
    projections, references, angles : str
        One of the names above.
    """

    folder: Path
    projections: str = "nhw"
    references: str = "before"
    angles: str = "event"

    def __post_init__(self) -> None:
        self.raw, self.flats, self.darks = frames()
        self.theta = THETA.copy()
        self.kinds: NDArray[np.int64] | None = None
        if self.references == "image_key":
            self._mix()
        self.m = M if self.projections in ("nmhw", "flat_m") else 1
        self.n = len(self.raw) // self.m
        self.path = self.folder / "scan.h5"
        self.settings: dict[str, Any] = {"keys.theta": "rotation"}
        self.others: dict[str, list[Document]] = {}
        """Runs that are not in the stream of documents, by uid."""
        self._write()

    @property
    def is_possible(self) -> bool:
        """Whether somebody could take such a scan, and it could be understood."""
        if self.references == "image_key" and self.angles in ("step", "stop"):
            return False  # nobody knows which frame the first projection is
        in_file = self.projections != "in_event"
        return in_file or self.references != "same_file"

    def _mix(self) -> None:
        """Put darks and flats among the projections, by image key."""
        parts = (self.darks, self.raw[:21], self.flats, self.raw[21:])
        kinds = [2] * 3 + [0] * 21 + [1] * 4 + [0] * 27
        theta = np.full(len(kinds), np.nan)
        theta[np.array(kinds) == 0] = self.theta
        # As many as a whole number of events needs.
        pad = -len(kinds) % M
        extra = np.repeat(self.raw[:1], pad, axis=0)
        self.raw = np.concatenate([*parts, extra])
        self.kinds = np.array(kinds + [3] * pad)
        self.theta = np.concatenate([theta, np.full(pad, np.nan)])

    def _write(self) -> None:
        shapes = {
            "n1hw": (-1, 1, ROWS, COLUMNS),
            "nmhw": (-1, self.m, ROWS, COLUMNS),
        }
        stored = self.raw.reshape(shapes.get(self.projections, (-1, ROWS, COLUMNS)))
        with h5py.File(self.path, "w") as file:
            file["entry/data"] = stored
            file["entry/theta"] = self.theta.reshape(self.n, self.m)
            file["entry/white"], file["entry/dark"] = self.flats, self.darks
            if self.kinds is not None:
                file["entry/kind"] = self.kinds.reshape(self.n, self.m)
        with h5py.File(self.folder / "encoder.h5", "w") as file:
            file["Angle"] = self.theta.reshape(self.n, self.m)
        with h5py.File(self.folder / "references.h5", "w") as file:
            file["entry/white"], file["entry/dark"] = self.flats, self.darks

    # --------------------------------------------------------------- documents

    def documents(self) -> list[Document]:
        """Tell of the scan."""
        named = {"datasets.flats": ["/entry/white"], "datasets.darks": ["/entry/dark"]}
        first: list[Document] = []
        start = self._start()
        if self.references.startswith("other_run"):
            other = self._references_run()
            uid = other[0][1]["uid"]
            start["flats_are_in"] = uid
            self.settings["start.references_run"] = ["flats_are_in"]
            self.others[uid] = other
            if self.references == "other_run":
                first = other
        if self.references == "file_of_start":
            start["flat_file"] = f"file://localhost{self.folder}/references.h5"
            self.settings |= {"start.references_file": ["flat_file"], **named}
        if self.references == "file_of_profile":
            place = str(self.folder / "references.h5")
            self.settings |= {"references.file": place, **named}
        if self.references == "same_file":
            self.settings |= {"references.file": "projections", **named}
        return [*first, *self._run(Run(start))]

    def _start(self) -> dict[str, Any]:
        start: dict[str, Any] = {"scan_id": 7}
        if self.angles == "list":
            start["angles"] = [None if np.isnan(a) else a for a in self.theta.tolist()]
        if self.angles in ("step", "stop"):
            start["turn"] = {"from": THETA[0], "by": STEP, "to": THETA[0] + 180}
            start["num_points"] = N
            key = {"step": "theta_step", "stop": "theta_stop"}[self.angles]
            last = {"step": "turn.by", "stop": "turn.to"}[self.angles]
            self.settings |= {
                "start.theta_start": ["turn.from"],
                f"start.{key}": [last],
                "start.stop_included": False,
            }
        return start

    def _references_run(self) -> list[Document]:
        run = Run({"scan_id": 6})
        self._still(run, "darks", self.darks)
        self._still(run, "flats", self.flats)
        return run.stop(darks=len(self.darks), flats=len(self.flats))

    def _still(self, run: Run, name: str, images: NDArray[np.uint16]) -> None:
        run.stream(name, {"camera": image((ROWS, COLUMNS))})
        for one in images:
            run.event(name, {"camera": one})

    def _run(self, run: Run) -> list[Document]:
        placed = {"before": 0, "between": self.n // 2, "after": self.n}
        at = placed.get(self.references)
        counts = {"primary": self.n}
        if self.angles == "other_stream":
            self._angle_stream(run)
            counts["encoder"] = self.n
        self._declare(run)
        for begin, end in self._blocks(at):
            if begin == at:
                self._still(run, "darks", self.darks)
                self._still(run, "flats", self.flats)
                counts |= {"darks": len(self.darks), "flats": len(self.flats)}
            if end > begin:
                self._project(run, begin, end)
        return run.stop(**counts)

    def _blocks(self, at: int | None) -> Iterator[tuple[int, int]]:
        cuts = sorted({0, 5, self.n // 2, self.n})
        yield from zip(cuts, [*cuts[1:], self.n], strict=True)

    def _angle_stream(self, run: Run) -> None:
        self.settings["streams.angles"] = ["encoder"]
        run.stream("encoder", {"rotation": number((self.m,), "STREAM:")})
        cuts = (0, 7, self.n)
        run.datums("encoder", "rotation", self.folder / "encoder.h5", "/Angle", cuts)

    def _declare(self, run: Run) -> None:
        shape = (self.m, ROWS, COLUMNS)
        outside = {"in_event": None, "legacy": "FILESTORE:"}
        keys = {"camera": image(shape, outside.get(self.projections, "STREAM:"))}
        if self.angles in ("same_file", "other_file"):
            keys["rotation"] = number((self.m,), "STREAM:")
        if self.angles == "event":
            keys["rotation"] = number((self.m,))
        if self.kinds is not None:
            keys["kind"] = number((self.m,))
            self.settings["keys.image_key"] = "kind"
        run.stream("primary", keys)
        if self.projections == "legacy":
            self.resource = run.bundle.compose_resource(
                spec="AD_HDF5",
                root="/",
                resource_path=str(self.path)[1:],
                resource_kwargs={"dataset": "entry/data", "frame_per_point": 1},
            )
            run.docs.append(("resource", self.resource.resource_doc))

    def _project(self, run: Run, begin: int, end: int) -> None:
        cuts = (begin, end)
        if self.angles == "same_file":
            run.datums("primary", "rotation", self.path, "/entry/theta", cuts)
        if self.angles == "other_file":
            place = self.folder / "encoder.h5"
            run.datums("primary", "rotation", place, "/Angle", cuts)
        if self.projections not in ("in_event", "legacy"):
            run.datums("primary", "camera", self.path, "/entry/data", cuts)
        for k in range(begin, end):
            data = self._data(run, k)
            if data:
                outside = {"camera": False} if self.projections == "legacy" else {}
                run.event("primary", data, seq_num=k + 1, filled=outside)

    def _data(self, run: Run, k: int) -> dict[str, Any]:
        of_event = slice(k * self.m, (k + 1) * self.m)
        data: dict[str, Any] = {}
        if self.angles == "event":
            data["rotation"] = self.theta[of_event].tolist()
        if self.kinds is not None:
            data["kind"] = self.kinds[of_event].tolist()
        if self.projections == "in_event":
            data["camera"] = self.raw[k]
        if self.projections == "legacy":
            datum = self.resource.compose_datum(datum_kwargs={"point_number": k})
            run.docs.append(("datum", datum))
            data["camera"] = datum["datum_id"]
        return data
