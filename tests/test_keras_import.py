"""Released Keras weights of TomoGAN against a forward pass in plain numpy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from ebl_stream.cli.commands import cli
from ebl_stream.cli.models import import_keras
from ebl_stream.errors import InputError
from ebl_stream.nets import zoo
from ebl_stream.nets.architecture import Architecture, Generator
from ebl_stream.nets.keras_import import GAIN, OFFSET

Floats = NDArray[np.float64]
SIZE = 32, 40


@pytest.fixture
def released(measured_scan: Callable[[str], Path]) -> Path:
    return measured_scan("extra/TomoGAN.h5")


def forward(path: Path, image: Floats) -> Floats:
    """Run a Keras file's layers one after the other, as the file describes them.

    Shares nothing with the import: float64, channels last, no torch.
    """
    with h5py.File(path) as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        made: dict[str, Floats] = {}
        for layer in layers:
            name, settings = layer["name"], layer["config"]
            given = [made[n[0]] for node in layer["inbound_nodes"] for n in node]
            match layer["class_name"]:
                case "InputLayer":
                    made[name] = image[..., None]
                case "Conv2D":
                    group = file[f"model_weights/{name}/{name}"]
                    made[name] = convolve(
                        given[0], group["kernel:0"][()], group["bias:0"][()]
                    )
                    if settings["activation"] == "relu":
                        made[name] = np.maximum(made[name], 0)
                case "MaxPooling2D":
                    y, x, n = given[0].shape
                    made[name] = given[0].reshape(y // 2, 2, x // 2, 2, n).max((1, 3))
                case "UpSampling2D":
                    way = settings.get("interpolation", "nearest")
                    made[name] = double(double(given[0], 0, way), 1, way)
                case "Concatenate":
                    made[name] = np.concatenate(given, settings["axis"])
    return made[layers[-1]["name"]][..., 0]


def convolve(image: Floats, kernel: NDArray[Any], bias: NDArray[Any]) -> Floats:
    """Correlate with zeros beyond the edges: Keras' padding ``same``."""
    reach = kernel.shape[0] // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], (0, 1))
    return (
        np.einsum("yxiab,abio->yxo", windows, kernel.astype(float), optimize=True)
        + bias
    )


def double(image: Floats, axis: int, way: str) -> Floats:
    if way == "nearest":
        return np.repeat(image, 2, axis)
    n = image.shape[axis]
    at = np.clip((np.arange(2 * n) - 0.5) / 2, 0, n - 1)
    low = np.floor(at).astype(int)
    part = np.expand_dims(at - low, [i for i in range(3) if i != axis])
    high = np.take(image, np.minimum(low + 1, n - 1), axis)
    return (1 - part) * np.take(image, low, axis) + part * high


def noisy_disc() -> Floats:
    """Return an image of grey values 0 to 255 that is not alike in any direction."""
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    disc = 60.0 + 130 * (np.hypot(y - 12, x - 23) < 10)
    return disc + np.random.default_rng(7).normal(0, 20, SIZE)


def ours(model: zoo.Model, image: Floats, dtype: torch.dtype) -> Floats:
    """Return grey values of what the imported net makes of grey values."""
    seen = torch.from_numpy((image - OFFSET) / GAIN)[None, None].to(dtype)
    with torch.inference_mode():
        return model.net.to(dtype)(seen)[0, 0].double().numpy() * GAIN + OFFSET


@pytest.mark.parametrize("way", ["as released", "bilinear"])
def test_imported_nets_compute_what_keras_does(
    released: Path, tmp_path: Path, way: str
) -> None:
    path = tmp_path / "TomoGAN.h5"
    shutil.copy(released, path)
    if way == "bilinear":
        change_config(path, lambda layers: interpolate(layers, "bilinear"))
    model = zoo.load(import_keras(path, tmp_path / "out"))
    image = noisy_disc()
    right = forward(path, image)
    assert np.ptp(right) > 50  # grey values: there is something to see
    # Grey values; then relative to what the net makes (standard deviation about 1).
    assert np.abs(ours(model, image, torch.float64) - right).max() < 1e-3
    single = ours(model, image, torch.float32)
    assert np.abs(single - right).max() / GAIN < 1e-4
    assert np.abs(single - right).max() / np.abs(right).max() < 1e-4


def test_the_card_says_where_it_comes_from(released: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli,
        ["models", "import", str(released), "--out", str(tmp_path), "--json"],
        standalone_mode=False,
    )
    assert done.exception is None
    card = json.loads(done.output)
    assert card["parameters"] == 694_897
    assert card["architecture"]["kind"] == "tomogan"
    assert card["architecture"]["upsampling"] == "nearest"
    assert card["licence"].startswith("Apache-2.0")
    assert card["data"]["grey_values"] == {
        "trained_on": "0 to 255",
        "offset": OFFSET,
        "gain": GAIN,
    }
    with pytest.raises(InputError, match="is there already"):
        import_keras(released, tmp_path)


# ------------------------------------------------------------- what is not TomoGAN


def small_keras(path: Path) -> Path:
    """Write TomoGAN's graph as Keras does, with random weights."""
    torch.manual_seed(1)
    state = Generator().state_dict()
    names = [n.removesuffix(".weight") for n in state if n.endswith(".weight")]
    layers: list[dict[str, Any]] = []

    def add(kind: str, *inputs: str, **settings: Any) -> str:
        name = f"layer_{len(layers)}"
        settings["name"] = name
        before = list(inputs) or [layers[-1]["name"]] if layers else []
        nodes = [[[one, 0, 0, {}] for one in before]] if before else []
        layers.append(
            {
                "name": name,
                "class_name": kind,
                "config": settings,
                "inbound_nodes": nodes,
            }
        )
        return name

    with h5py.File(path, "w") as file:

        def convolve_next() -> str:
            ours = names[sum(one["class_name"] == "Conv2D" for one in layers)]
            kernel = state[f"{ours}.weight"].numpy()
            name = add(
                "Conv2D",
                kernel_size=list(kernel.shape[2:]),
                strides=[1, 1],
                dilation_rate=[1, 1],
                padding="same",
                use_bias=True,
                data_format="channels_last",
                activation="linear" if ours == "leave.2" else "relu",
            )
            group = f"model_weights/{name}/{name}"
            file[f"{group}/kernel:0"] = kernel.transpose(2, 3, 1, 0)
            file[f"{group}/bias:0"] = state[f"{ours}.bias"].numpy()
            return name

        add("InputLayer", batch_input_shape=[None, None, None, 1])
        convolve_next()
        kept = []
        for _ in range(3):
            convolve_next()
            kept.append(convolve_next())
            add("MaxPooling2D", pool_size=[2, 2], strides=[2, 2])
        convolve_next()
        for _ in range(3):
            up = add("UpSampling2D", size=[2, 2], interpolation="bilinear")
            add("Concatenate", kept.pop(), up, axis=-1)
            convolve_next()
            convolve_next()
        convolve_next()
        convolve_next()
        file.attrs["model_config"] = json.dumps({"config": {"layers": layers}})
    return path


def change_config(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config["config"]["layers"])
        file.attrs["model_config"] = json.dumps(config)


def interpolate(layers: list[dict[str, Any]], way: str) -> None:
    for layer in layers:
        if layer["class_name"] == "UpSampling2D":
            layer["config"]["interpolation"] = way


def swap_inputs(layers: list[dict[str, Any]]) -> None:
    (one,) = [i for i, v in enumerate(layers) if v["class_name"] == "Concatenate"][:1]
    layers[one]["inbound_nodes"][0].reverse()


def refused(path: Path, out: Path) -> str:
    with pytest.raises(InputError) as caught:
        import_keras(path, out)
    assert not out.exists()
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    assert message.count(str(path.resolve())) == 1
    return message


def test_the_graph_alone_is_enough(tmp_path: Path) -> None:
    path = small_keras(tmp_path / "My net.h5")
    model = zoo.load(import_keras(path, tmp_path / "out"))
    assert model.card.name == "my-net"
    assert model.card.licence == "not stated in the file"
    assert model.card.architecture == Architecture(kind="tomogan")
    image = noisy_disc()
    error = ours(model, image, torch.float64) - forward(path, image)
    assert np.abs(error).max() < 1e-3


CHANGES: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "activation": (lambda v: v[2]["config"].update(activation="elu"), "'layer_2'"),
    "stride": (lambda v: v[2]["config"].update(strides=[2, 2]), "'layer_2'"),
    "dilation": (lambda v: v[2]["config"].update(dilation_rate=[2, 2]), "'layer_2'"),
    "no bias": (lambda v: v[2]["config"].update(use_bias=False), "'layer_2'"),
    "pooling": (lambda v: v[4].update(class_name="AveragePooling2D"), "'layer_4'"),
    "shortcut": (swap_inputs, "Concatenate expected"),
    "a layer less": (lambda v: v.pop(), "25 layers, not 26"),
    "bicubic": (lambda v: interpolate(v, "bicubic"), "nearest or bilinear only"),
    "depth": (lambda v: v[0]["config"].update(batch_input_shape=[2]), "not 1, 3"),
    "none": (lambda v: v.clear(), "0 layers"),
    "text": (lambda v: v.insert(0, "x"), "does not describe a Keras model"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_graphs_are_refused(tmp_path: Path, name: str) -> None:
    path = small_keras(tmp_path / "a.h5")
    change, message = CHANGES[name]
    change_config(path, change)
    assert message in refused(path, tmp_path / "out")


def test_other_files_are_refused(
    tmp_path: Path, measured_scan: Callable[[str], Path]
) -> None:
    path, out = tmp_path / "a.h5", tmp_path / "out"
    bias = "model_weights/layer_1/layer_1/bias:0"
    kernel = "model_weights/layer_1/layer_1/kernel:0"

    def answer(name: str, value: Any, **settings: Any) -> str:
        small_keras(path)
        with h5py.File(path, "r+") as file:
            del file[name]
            if value is not None:
                file.create_dataset(name, data=value, **settings)
        return refused(path, out)

    assert "bias:0" in answer(bias, None)
    assert "is [7], not [8]" in answer(bias, np.zeros(7, np.float32))
    assert "is [8, 1, 1, 1]" in answer(kernel, np.zeros((8, 1, 1, 1), np.float32))
    assert "holds NaN" in answer(bias, np.full(8, np.nan, np.float32))
    assert "int64" in answer(bias, np.zeros(8, int))
    assert "not numbers" in answer(bias, ["a"] * 8)
    # 4 TB that take no room in the file, and are never read.
    huge: dict[str, Any] = {"shape": (2**40,), "dtype": "f4", "chunks": (1024,)}
    small_keras(path)
    with h5py.File(path, "r+") as file:
        del file[kernel]
        file.create_dataset(kernel, **huge)
    assert "float32 [1099511627776]" in refused(path, out)
    with h5py.File(path, "r+") as file:
        del file[kernel]
        file[kernel] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
    assert "outside the allowed folders" in refused(path, out)
    small_keras(path)
    os.truncate(path, 64 * 2**20 + 1)
    assert "larger than" in refused(path, out)
    os.truncate(path, 3000)
    refused(path, out)
    path.write_text("no HDF5 at all, and longer than forty-eight characters")
    assert "is not an HDF5 file" in refused(path, out)
    weights_alone = measured_scan("extra/xlearn_weights_seg.h5")
    assert "no model_config" in refused(weights_alone, out)
