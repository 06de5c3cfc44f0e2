"""An NXtomo file through the whole corridor: kinds share one stream."""

from __future__ import annotations

import h5py
import numpy as np
import zarr
from reference import band_limited_fbp, nrmse

from ebl_stream import profile_file as profiles
from ebl_stream.cli.commands import PLAIN
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.simulation.detector import DetectorModel
from ebl_stream.simulation.phantom import Foam, golden_angles
from ebl_stream.sources import open_source

CENTER = 50.0


def test_complete_and_equal_to_band_limited_fbp(tmp_path):
    detector, theta = DetectorModel(4, 96), golden_angles(120)
    raw = detector.projections(Foam(96, 4).project(theta, rotation_center=CENTER))
    flats, darks = detector.flats(10), detector.darks(10)
    path = tmp_path / "scan.nxs"
    with h5py.File(path, "w") as file:
        file["entry/definition"] = "NXtomo"
        frames = np.concatenate([darks, flats[:6], raw, flats[6:]])
        file["entry/instrument/detector/data"] = frames
        kinds = [2] * 10 + [1] * 6 + [0] * 120 + [1] * 4
        file["entry/instrument/detector/image_key"] = kinds
        angles = np.concatenate([np.zeros(16), theta, np.zeros(4)])
        file["entry/sample/rotation_angle"] = np.rad2deg(angles)
        file["entry/sample/rotation_angle"].attrs["units"] = "degree"
    settings = PLAIN | {"geometry.rotation_center": CENTER}
    source, profile = open_source(str(path), profiles.load("nxtomo", settings))
    callback = Reconstruction(profile, out=tmp_path / "out", roots=source.roots)
    for name, doc in source.documents():
        callback(name, doc)
    callback.close()
    (result,) = callback.results.values()
    assert result.state == "complete"
    assert result.ledger["announced"] == result.ledger["used"] == 120
    dark = darks.mean(0)
    transmission = (raw - dark) / (flats.mean(0) - dark)
    values = -np.log(np.clip(transmission, 1e-5, None))[:, 2].astype(float)
    volume = zarr.open_array(result.volume, mode="r")
    expected = band_limited_fbp(values, theta, CENTER)
    assert nrmse(volume[2], expected, fit=True) < 0.01
