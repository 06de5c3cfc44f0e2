"""Nets whose weights no longer change, run by OpenVINO: faster than by torch.

Its Python package would report every use to its makers. Here the module that does
so cannot be imported: nothing leaves the machine.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import sys
import threading
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ebl_stream.nets.apply import Frozen, has_bfloat16, one_thread
from ebl_stream.nets.zoo import Model

log = logging.getLogger(__name__)

Precision: TypeAlias = Literal["bf16", "f32"]

_REPORTER = "openvino_telemetry"
_EXAMPLE_PX = 16
"""Side of the image by which the graph is found; any other size works as well."""


def freeze(model: Model, precision: Precision | None = None) -> Frozen:
    """Return a net as a function; what happens to ``model`` afterwards is not seen.

    Every caller computes on one thread, and several may at the same time. Without
    OpenVINO (extra ``frozen``) torch computes, and the log says so.

    Parameters
    ----------
    model : Model
    precision : {"bf16", "f32"}, optional
        By default bfloat16 where the machine is faster with it. RMS differences from
        float32 in torch, over the result's standard deviation: below 3 % (measured 0.5
        to 2 %), and below 1e-5 with f32.

    Returns
    -------
    callable
        Takes float32 on the nets' scale, y and x multiples of
        ``architecture.multiple``.
    """
    wanted = precision or ("bf16" if has_bfloat16() else "f32")
    openvino = _openvino()
    if openvino is None:
        log.info("%s runs in torch: there is no OpenVINO", model.card.name)
        return _in_torch(model, wanted)
    return _in_openvino(openvino, model, wanted)


def is_available() -> bool:
    """Return whether OpenVINO runs what is frozen."""
    return _openvino() is not None


@lru_cache(1)
def _openvino() -> Any:
    """Return OpenVINO, kept from reporting; None where it is not installed."""
    if _REPORTER in sys.modules and sys.modules[_REPORTER] is not None:
        log.warning("OpenVINO was loaded by others, who let it report its use")
        return None
    sys.modules[_REPORTER] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        log.debug("no OpenVINO: %s", error)
        return None


def _in_openvino(openvino: Any, model: Model, precision: Precision) -> Frozen:
    one_thread()
    example = torch.zeros(1, model.card.architecture.depth, _EXAMPLE_PX, _EXAMPLE_PX)
    # The graph shares its memory with the net that it is made of.
    graph = openvino.convert_model(copy.deepcopy(model.net), example_input=example)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    compiled = openvino.Core().compile_model(
        graph,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            # One thread for each of as many callers as there are cores.
            "NUM_STREAMS": cores,
            "INFERENCE_NUM_THREADS": cores,
            "ENABLE_CPU_PINNING": False,
        },
    )
    own = threading.local()

    def run(seen: NDArray[np.float32]) -> NDArray[np.float32]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        # What it returns is a copy: the request keeps its own for the next.
        return own.request.infer({0: np.ascontiguousarray(seen, np.float32)})[0]

    return run


def _in_torch(model: Model, precision: Precision) -> Frozen:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    net = copy.deepcopy(model.net).to(dtype)
    net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def run(seen: NDArray[np.float32]) -> NDArray[np.float32]:
        one_thread()
        x = torch.from_numpy(np.ascontiguousarray(seen, np.float32))
        with torch.inference_mode():
            x = x.to(dtype, memory_format=torch.channels_last)
            return net(x).float().contiguous().numpy()

    return run
