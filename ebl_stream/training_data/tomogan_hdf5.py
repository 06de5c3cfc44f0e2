"""Files of pairs in TomoGAN's layout: ``train_ns train_gt test_ns test_gt``.

Each is ``[image, y, x]``; ``ns`` is noisy, ``gt`` what is wanted instead. Images that
follow each other are taken for adjacent slices. An attribute ``slices`` of ours says
where another sample begins.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ebl_stream.errors import InputError
from ebl_stream.ingest.hdf5 import open_dataset
from ebl_stream.ingest.links import DAMAGE
from ebl_stream.ingest.opening import open_hdf5
from ebl_stream.nets.train.lessons import Lessons, Slab, Stack, hold_out, of_pair
from ebl_stream.simulation.library import Known
from ebl_stream.training_data import sha256_of

MAX_BYTES = 16 * 2**30
"""Of the images of one file, as float32."""

PARTS = ("train", "test")


def is_layout(path: Path) -> bool:
    """Return whether a file looks like it; False where it cannot be opened."""
    try:
        with open_hdf5(path) as file:
            return "train_ns" in file and "train_gt" in file
    except (InputError, *DAMAGE):
        return False


def lessons(path: Path) -> Lessons:
    """Read a file of pairs.

    Without ``test_ns`` and ``test_gt`` slices in the middle are held out.

    Raises
    ------
    InputError
        It is no such file: what lacks, does not fit, or is no number.
    """
    try:
        with open_hdf5(path) as file:
            train = _read(file, path, "train")
            held = _read(file, path, "test") if "test_ns" in file else None
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read: {str(error)[:200]}") from None
    arrays = [*train[:2], *(held[:2] if held else ())]
    source = {"file": path.name, "layout": "tomogan", "sha256": sha256_of(*arrays)}
    about = {"sources": [source]}
    stacks = _stacks(path, *train)
    if held is not None:
        return Lessons(stacks, _stacks(path, *held), about)
    found = Lessons((), (), about)
    for stack in stacks:
        found += hold_out(stack)
    return found


def write(path: Path, train: Iterable[Known], held: Iterable[Known]) -> None:
    """Write simulated scans as a file of pairs: the volume, and the truth.

    Values are in 1/px. The file appears whole or not at all.

    Raises
    ------
    OSError
        It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number, draft = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    os.close(number)
    try:
        with h5py.File(draft, "w") as file:
            for part, known in zip(PARTS, (train, held), strict=True):
                for one in known:
                    _append(file, f"{part}_ns", one.volume)
                    _append(file, f"{part}_gt", one.truth)
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


def _append(file: h5py.File, name: str, slab: Slab) -> None:
    if name not in file:
        shape = (None, *slab.shape[1:])
        file.create_dataset(name, data=slab, maxshape=shape, chunks=(1, *shape[1:]))
        file[name].attrs["slices"] = [len(slab)]
        return
    dataset = file[name]
    assert isinstance(dataset, h5py.Dataset)  # noqa: S101  (made above)
    start = len(dataset)
    dataset.resize(start + len(slab), 0)
    dataset[start:] = slab
    before = np.asarray(dataset.attrs["slices"])
    dataset.attrs["slices"] = np.append(before, len(slab))


def _read(file: h5py.File, path: Path, part: str) -> tuple[Slab, Slab, list[int]]:
    """Return noisy images, wanted ones, and how many belong to each sample."""
    pair: list[Slab] = []
    slices: Any = None
    shape: tuple[int, ...] | None = None
    for name in (f"{part}_ns", f"{part}_gt"):
        dataset = open_dataset(file, name, [path.absolute().parent])
        if dataset.ndim != 3 or not dataset.size:
            raise InputError(
                f"{path}: {name} is {dataset.shape}; images [image, y, x] are wanted"
            )
        if shape not in (None, dataset.shape):
            raise InputError(f"{path}: {name} is {dataset.shape}, its twin {shape}")
        if 4 * dataset.size > MAX_BYTES:
            raise InputError(f"{path}: {name} is larger than {MAX_BYTES} bytes")
        shape, slices = dataset.shape, dataset.attrs.get("slices", slices)
        pair.append(_finite(np.asarray(dataset[()], np.float32), f"{path}: {name}"))
    return pair[0], pair[1], _counts(slices, len(pair[0]))


def _finite(images: Slab, where: str) -> Slab:
    bad = np.flatnonzero(~np.isfinite(images).all((1, 2)))
    if len(bad):
        raise InputError(f"{where}: image {bad[0]} holds NaN or infinity")
    return images


def _counts(slices: Any, n: int) -> list[int]:
    """Return the images of each sample; all of them where the file does not say."""
    counts: NDArray[Any] = np.atleast_1d(np.asarray(n if slices is None else slices))
    sound = counts.dtype.kind in "iu" and counts.ndim == 1 and (counts > 0).all()
    return counts.tolist() if sound and counts.sum() == n else [n]


def _stacks(
    path: Path, noisy: Slab, wanted: Slab, counts: Sequence[int]
) -> tuple[Stack, ...]:
    ends = np.cumsum(counts)
    return tuple(
        of_pair(path.stem, noisy[end - n : end], wanted[end - n : end])
        for n, end in zip(counts, ends, strict=True)
    )
