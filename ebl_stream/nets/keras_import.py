"""TomoGAN's generator as Keras stores it (HDF5), made a net of ours.

Only the graph that was published is taken: its description in the file is compared
layer by layer, so that weights which merely have the same shapes are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebl_stream import strict_json
from ebl_stream.errors import InputError
from ebl_stream.nets.architecture import SCALES, Architecture
from ebl_stream.nets.layout import require_shapes

MAX_CONFIG_BYTES = 2**20
OFFSET, GAIN = 127.5, 42.5
"""Grey values: the one that becomes 0, and the step that becomes 1."""

LICENCES = {
    "c6f4330cf66525b8fcf038d8341085f819bdb7b151dab619054f783c0cc81973": (
        "Apache-2.0 (AIScienceTutorial/Denoising, model/TomoGAN.h5)"
    )
}
"""Of files that are known, by SHA-256."""

Read = Callable[[str, int], NDArray[Any]]
"""Reads a dataset by its path; refuses one of more than so many values."""


@dataclass(frozen=True)
class Layer:
    """One layer of a Keras model."""

    kind: str
    inputs: tuple[int, ...]
    """Numbers of the layers before it."""
    settings: dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """A generator that was trained elsewhere, on this house's scale."""

    architecture: Architecture
    state: dict[str, Tensor]


def convert(config: str | bytes, read: Read) -> Imported:
    """Make Keras' weights those of a `ebl_stream.nets.architecture.Generator`.

    They were trained on images of 0 to 255. What the result sees and makes is
    ``(grey value - OFFSET) / GAIN``: the first and the last layer are 1 x 1, so that
    the scale goes into them without a remainder.

    Parameters
    ----------
    config : str or bytes
        The file's attribute ``model_config``.
    read : callable
        Reads a dataset of the file.

    Raises
    ------
    InputError
        Another net, or weights that are not its own; one line.
    """
    layers = _layers(config)
    architecture = _recognize(layers)
    convolutions = [layer for layer in layers if layer.kind == "Conv2D"]
    with torch.device("meta"):
        state = architecture.build().state_dict()
    wanted = {name: _as_keras(tuple(value.shape)) for name, value in state.items()}
    found: dict[str, NDArray[np.float64]] = {}
    for ours, theirs in zip(_modules(), convolutions, strict=True):
        name = theirs.settings["name"]
        for part, dataset in (("weight", "kernel:0"), ("bias", "bias:0")):
            limit = int(np.prod(wanted[f"{ours}.{part}"]))
            values = read(f"model_weights/{name}/{name}/{dataset}", limit)
            if not np.isfinite(values).all():
                raise InputError(f"{name}/{dataset} holds NaN or infinity")
            found[f"{ours}.{part}"] = values.astype(np.float64)
    shapes = {name: value.shape for name, value in found.items()}
    require_shapes(shapes, wanted, "the weights")
    for name, value in found.items():
        if value.ndim == 4:
            found[name] = value.transpose(3, 2, 0, 1)
    _take_shortcuts_last(found)
    _rescale(found)
    return Imported(
        architecture,
        {
            name: torch.from_numpy(np.ascontiguousarray(value, np.float32))
            for name, value in found.items()
        },
    )


def _modules() -> list[str]:
    """Return the convolutions of our generator in the order of Keras' layers."""
    down, up = (
        [f"{way}.{k}.{i}" for k in range(SCALES) for i in (0, 2)]
        for way in ("down", "up")
    )
    return ["enter", *down, "middle", *up, "leave.0", "leave.2"]


def _as_keras(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the order in which Keras keeps a kernel: ``[y, x, in, out]``."""
    return (*shape[2:], *reversed(shape[:2]))


def _take_shortcuts_last(found: dict[str, NDArray[np.float64]]) -> None:
    """Exchange the halves of what goes in: Keras' shortcuts come first, ours last."""
    for k in range(SCALES):
        weight = found[f"up.{k}.0.weight"]
        found[f"up.{k}.0.weight"] = np.roll(weight, weight.shape[1] // 2, axis=1)


def _rescale(found: dict[str, NDArray[np.float64]]) -> None:
    """Let the net see and make our scale instead of grey values."""
    found["enter.bias"] += OFFSET * found["enter.weight"].sum((1, 2, 3))
    found["enter.weight"] *= GAIN
    found["leave.2.bias"] = (found["leave.2.bias"] - OFFSET) / GAIN
    found["leave.2.weight"] /= GAIN


def _layers(config: str | bytes) -> list[Layer]:
    try:
        found = strict_json.loads(config, max_bytes=MAX_CONFIG_BYTES)
        layers = found["config"]["layers"]
        numbers = {layer["config"]["name"]: i for i, layer in enumerate(layers)}
        return [
            Layer(
                layer["class_name"],
                tuple(numbers[n[0]] for node in layer["inbound_nodes"] for n in node),
                layer["config"],
            )
            for layer in layers
        ]
    except strict_json.JsonError as error:
        raise InputError(f"model_config is not to be read: {error}") from None
    except (KeyError, IndexError, TypeError):
        raise InputError("model_config does not describe a Keras model") from None


def _recognize(layers: Sequence[Layer]) -> Architecture:
    """Return what the layers are; InputError where it is not TomoGAN's generator."""
    published = _published()
    if len(layers) != len(published):
        raise InputError(
            f"not TomoGAN's generator: {len(layers)} layers, not {len(published)}"
        )
    for layer, right in zip(layers, published, strict=True):
        given = {key: layer.settings.get(key) for key in right.settings}
        if Layer(layer.kind, layer.inputs, given) != right:
            name = str(layer.settings["name"])[:40]
            raise InputError(
                f"not TomoGAN's generator: {name!r} is not the {right.kind} expected"
            )
    shape = layers[0].settings.get("batch_input_shape")
    depth = shape[-1] if isinstance(shape, list) and shape else None
    if not isinstance(depth, int) or depth not in range(1, 16, 2):
        raise InputError(
            "not TomoGAN's generator: its input is not 1, 3, ... 15 slices"
        )
    return Architecture(kind="tomogan", depth=depth, upsampling=_upsampling(layers))


def _upsampling(layers: Sequence[Layer]) -> Literal["bilinear", "nearest"]:
    """Return how scales are doubled; early versions did not write it down.

    Keras takes such a file for ``nearest``, and so do we.
    """
    ups = [layer.settings for layer in layers if layer.kind == "UpSampling2D"]
    ways = [settings.get("interpolation", "nearest") for settings in ups]
    for way in ("nearest", "bilinear"):
        if ways == [way] * SCALES:
            return way
    raise InputError(
        f"scales are doubled by {str(ways)[:80]}: nearest or bilinear only"
    )


def _published() -> list[Layer]:
    """Return the published graph, as far as it matters."""
    graph = [Layer("InputLayer", (), {})]

    def add(kind: str, *inputs: int, **settings: Any) -> int:
        graph.append(Layer(kind, inputs or (len(graph) - 1,), settings))
        return len(graph) - 1

    def convolve(size: int, activation: str = "relu") -> int:
        padding = {"padding": "same"} if size > 1 else {}
        settings = {"kernel_size": [size] * 2, "strides": [1, 1], "use_bias": True}
        plain = {"dilation_rate": [1, 1], "data_format": "channels_last"}
        return add("Conv2D", activation=activation, **settings, **plain, **padding)

    convolve(1)
    kept: list[int] = []
    for _ in range(SCALES):
        convolve(3)
        kept.append(convolve(3))
        add("MaxPooling2D", pool_size=[2, 2], strides=[2, 2])
    convolve(3)
    for _ in range(SCALES):
        up = add("UpSampling2D", size=[2, 2])
        add("Concatenate", kept.pop(), up, axis=-1)
        convolve(3)
        convolve(3)
    convolve(1)
    convolve(1, "linear")
    return graph
