"""A training on disk: tensors and one line of JSON in one file, written at once.

Weights, the optimizers' sums and the learning curve stand in one safetensors file,
so that a kill at any moment leaves the last checkpoint or the one before, whole.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ebl_stream import strict_json
from ebl_stream.errors import InputError

MAX_BYTES = 2 * 2**30
Tensors = dict[str, Tensor]


def save(path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write a checkpoint in place of the one before.

    Raises
    ------
    OSError
        The disk refused; what was there before is still there.
    """
    sound = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = safetensors.torch.save(sound, {"state": json.dumps(state)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}-", suffix=".part", delete=False
    ) as draft:
        try:
            draft.write(content)
            draft.flush()
            os.fsync(draft.fileno())
            os.replace(draft.name, path)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read a checkpoint; nothing in it is executed.

    Raises
    ------
    InputError
        It is not a checkpoint of a training.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"{path} has {size} bytes: no checkpoint is that large")
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
        (length,) = struct.unpack("<Q", content[:8])
        header = strict_json.loads(content[8 : 8 + length].decode())
        state = strict_json.loads(header["__metadata__"]["state"])
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error):
        raise InputError(
            f"{path} is not a checkpoint of a training; delete it to begin anew"
        ) from None
    if not isinstance(state, dict):
        raise InputError(f"{path} is not a checkpoint of a training")
    return tensors, state


def named(prefix: str, tensors: Tensors) -> Tensors:
    """Return tensors with a prefix before their names."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def part(prefix: str, tensors: Tensors) -> Tensors:
    """Return what `named` made of a prefix."""
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def of_optimizer(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return what an optimizer has summed up."""
    sums = optimizer.state_dict()["state"]
    return {f"{k}/{name}": v for k, one in sums.items() for name, v in one.items()}


def to_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Give an optimizer back what `of_optimizer` took."""
    sums: dict[int, Tensors] = {}
    for key, value in tensors.items():
        number, name = key.split("/")
        sums.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": sums})
