"""Runs of documents as tests need them, and what becomes of their frames."""

from collections import Counter

import event_model
import numpy as np

from ebl_stream.frames import (
    Announced,
    Closed,
    Frame,
    Kind,
    Rejected,
    Repeated,
    Scan,
)
from ebl_stream.ingest.assemble import Assembler
from ebl_stream.ingest.router import RunSorter
from ebl_stream.profile import Profile

H, W = 8, 12


def images(n, seed=0):
    return np.random.default_rng(seed).integers(1, 60_000, (n, H, W), np.uint16)


def image_key(shape=(H, W), external=None):
    key = {"dtype": "array", "shape": list(shape), "source": "test"}
    return key | ({"external": external} if external else {})


def scalar(**extra):
    return {"dtype": "number", "shape": [], "source": "test", **extra}


def make_profile(timeout_s=0.3, **sections):
    files = {"timeout_s": timeout_s, **sections.pop("files", {})}
    return Profile.model_validate({"files": files, **sections})


class Outcome:
    """What came of a run: the last word on every key."""

    def __init__(self, items):
        self.items = items
        self.frames, self.rejected = {}, {}
        self.announced, self.repeated = Counter(), Counter()
        for item in items:
            match item:
                case Announced():
                    for index in range(item.start, item.stop):
                        self.announced[(item.kind, index)] += 1
                case Repeated():
                    self.repeated[item.how] += item.stop - item.start
                case Frame():
                    self.frames[(item.kind, item.index)] = item
                    self.rejected.pop((item.kind, item.index), None)
                case Rejected():
                    self.rejected[(item.kind, item.index)] = item.reason
                    self.frames.pop((item.kind, item.index), None)

    @property
    def scan(self):
        assert [type(item) for item in self.items].count(Scan) == 1
        assert isinstance(self.items[0], Scan)
        return self.items[0]

    @property
    def closed(self):
        assert isinstance(self.items[-1], Closed)
        return self.items[-1]

    def check_conserved(self):
        """Each frame is announced once, and is there or has a reason."""
        assert set(self.announced.values()) <= {1}
        assert self.announced.keys() == self.frames.keys() | self.rejected.keys()

    def stack(self, kind=Kind.PROJECTION):
        keys = sorted(key for key in self.frames if key[0] is kind)
        return np.stack([self.frames[key].image for key in keys])

    def theta(self):
        keys = sorted(key for key in self.frames if key[0] is Kind.PROJECTION)
        return np.array([self.frames[key].theta for key in keys])


def assemble(docs, profile=None, sort=False, **kwargs):
    assembler, items = Assembler(profile or make_profile(), **kwargs), []

    def feed(name, doc):
        items.extend(assembler(name, doc))

    if sort:
        sorter = RunSorter(lambda start: feed)
        for name, doc in docs:
            sorter(name, doc)
        sorter.close()
    else:
        for name, doc in docs:
            feed(name, doc)
    items.extend(assembler.close())
    return Outcome(items)


def stepped(frames, theta, start=None, keys=None, stream="primary"):
    """A step scan with images inside its events."""
    run = event_model.compose_run(metadata=start or {})
    keys = keys or {"image": image_key(), "theta": scalar(units="deg")}
    descriptor = run.compose_descriptor(name=stream, data_keys=keys)
    docs = [("start", run.start_doc), ("descriptor", descriptor.descriptor_doc)]
    for image, angle in zip(frames, theta, strict=True):
        event = descriptor.compose_event(
            data={"image": image, "theta": angle},
            timestamps={"image": 0.0, "theta": 0.0},
            validate=False,
        )
        docs.append(("event", event))
    return [*docs, ("stop", run.compose_stop())]


class Fly:
    """A fly scan: datasets of one file, told by StreamResource and StreamDatum."""

    def __init__(self, path, datasets, shapes, start=None, stream="primary"):
        self.run = event_model.compose_run(metadata=start or {})
        keys = {
            key: image_key(shape, "STREAM:")
            if len(shape) > 1
            else {**scalar(), "shape": list(shape), "external": "STREAM:"}
            for key, shape in shapes.items()
        }
        self.descriptor = self.run.compose_descriptor(name=stream, data_keys=keys)
        self.docs = [
            ("start", self.run.start_doc),
            ("descriptor", self.descriptor.descriptor_doc),
        ]
        self.resources = {}
        self.stream, self.n = stream, 0
        for key, dataset in datasets.items():
            resource = self.run.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{path}",
                data_key=key,
                parameters={"dataset": dataset},
            )
            self.resources[key] = resource
            self.docs.append(("stream_resource", resource.stream_resource_doc))

    def datum(self, key, start, stop, seq=None):
        seq = start + 1 if seq is None else seq
        self.n = max(self.n, seq + stop - start - 1)
        doc = self.resources[key].compose_stream_datum(
            indices={"start": start, "stop": stop},
            seq_nums={"start": seq, "stop": seq + stop - start},
            descriptor=self.descriptor.descriptor_doc,
            validate=False,
        )
        self.docs.append(("stream_datum", doc))
        return self

    def stop(self):
        stop = self.run.compose_stop() | {"num_events": {self.stream: self.n}}
        return [*self.docs, ("stop", stop)]
