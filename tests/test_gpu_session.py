"""A run on the GPU's accumulators, which the CPU emulates here."""

from __future__ import annotations

import numpy as np
import pytest
import sessions
from cuda_on_cpu.emulator import EmulatedDevice
from reference import nrmse

from ebl_stream import reconstruction
from ebl_stream.gpu.choice import accumulator_factory
from ebl_stream.profile_file import load
from ebl_stream.reconstruction import Reconstruction
from ebl_stream.simulation.phantom import Foam

N_COLUMNS, N_ROWS, N_ANGLES = 32, 6, 48
CENTER = 14.75


def test_a_run_is_the_same_on_both(tmp_path):
    theta = np.arange(N_ANGLES) * np.pi / N_ANGLES
    foam = Foam(N_COLUMNS, N_ROWS, seed=2)
    images = sessions.counts(foam.project(theta, rotation_center=CENTER))
    settings = {
        "geometry.rotation_center": CENTER,
        "preprocess": [*sessions.PLAIN["preprocess"], "remove_rings"],
    }
    cpu = sessions.run(tmp_path, images, theta, **settings)
    make = accumulator_factory(EmulatedDevice())
    gpu = sessions.run(tmp_path, images, theta, accumulators=make, **settings)
    assert nrmse(gpu.array(), cpu.array()) < 1e-4
    rows = [outcome.result.quality for outcome in (cpu, gpu)]
    assert rows[1]["split_noise"] == pytest.approx(rows[0]["split_noise"], rel=1e-3)


def test_without_a_gpu_the_cpu_does_it_and_says_so(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    profile = load("default", {"compute.device": "gpu"})
    made = Reconstruction(profile, out=tmp_path)
    assert made.accumulators is None
    assert "no GPU" in caplog.text
    assert reconstruction.log.name in {record.name for record in caplog.records}
