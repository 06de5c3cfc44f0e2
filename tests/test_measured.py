"""Measured scans through the whole corridor: file, documents, frames, volume."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import zarr
from reference import band_limited_fbp, nrmse

from ebl_stream import profile_file as profiles
from ebl_stream.cli.commands import PLAIN
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.sources import open_source

CENTERS = {
    # file: (column in the manifest, allowed error in px)
    "aps_tooth.h5": (295.6, 0.5),
    "helsinki_pepper_normal.h5": (279.5, 0.5),
    "ssrl_txm_tomo77.h5": (39.0, 0.75),
    "itb_bone.h5": (74.5, 0.75),
}


def replay(path, out, **overrides):
    profile = profiles.load("data_exchange", overrides)
    source, profile = open_source(str(path), profile)
    callback = Reconstruction(profile, out=out, roots=source.roots)
    for name, doc in source.documents():
        callback(name, doc)
    callback.close()
    (result,) = callback.results.values()
    return result


def plain_sinogram(path, row):
    with h5py.File(path) as scan:
        raw = scan["exchange/data"][:, row].astype(float)
        flat = scan["exchange/data_white"][:, row].mean(0)
        dark = scan["exchange/data_dark"][:, row].mean(0)
        theta = np.deg2rad(scan["exchange/theta"][:])
    return -np.log(np.clip((raw - dark) / (flat - dark), 1e-5, None)), theta


@pytest.mark.parametrize("file", [*CENTERS, "dls_k11_stream.h5"])
def test_complete_with_default_settings(measured_scan, tmp_path, file):
    result = replay(measured_scan(file), tmp_path)
    assert result.state == "complete"
    assert result.ledger["residue"] == 0
    assert result.ledger["announced"] == result.ledger["used"] == result.n_projections
    volume = zarr.open_array(result.volume, mode="r")
    assert volume.shape == result.shape
    assert np.isfinite(volume[0]).all()


@pytest.mark.parametrize("file", CENTERS)
def test_automatic_center(measured_scan, tmp_path, file):
    expected, tolerance = CENTERS[file]
    settings = PLAIN | {"geometry.use_file_center": False}
    result = replay(measured_scan(file), tmp_path, **settings)
    assert result.rotation_center_source == "measured"
    assert result.rotation_center == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("file", CENTERS)
def test_plain_equals_band_limited_fbp(measured_scan, tmp_path, file):
    path = measured_scan(file)
    center, _ = CENTERS[file]
    settings = PLAIN | {"geometry.rotation_center": center}
    result = replay(path, tmp_path, **settings)
    volume = zarr.open_array(result.volume, mode="r")
    row = volume.shape[0] // 2
    reference = band_limited_fbp(*plain_sinogram(path, row), center)
    assert nrmse(volume[row], reference, fit=True) < 0.05
