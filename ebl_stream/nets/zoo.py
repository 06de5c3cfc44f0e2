"""Nets as files: ``NAME.safetensors`` and its card ``NAME.json`` beside it.

A net may come from anywhere. Its file is data alone, read whole only once its size
is known, and believed only where it fits its card; nothing is ever unpickled.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from ebl_stream.errors import InputError
from ebl_stream.nets.architecture import Architecture
from ebl_stream.nets.card import MAX_CARD_BYTES, Card, Kind, read_card
from ebl_stream.nets.layout import require_header, require_shapes, require_tensors

MAX_WEIGHTS_BYTES = 64 * 2**20
WEIGHTS, CARD = ".safetensors", ".json"
SHIPPED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Model:
    """A net that is what its card says."""

    card: Card
    net: nn.Module
    """float32 on the CPU, for inference."""
    path: Path
    """Of its weights."""


def save(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    name: str,
    kind: Kind,
    architecture: Architecture,
    data: dict[str, JsonValue],
    steps: int,
    metrics: Mapping[str, float],
    licence: str,
    command: str,
) -> Path:
    """Write a net and its card; return the path of its weights.

    Each file appears whole or not at all, the card last.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    state : mapping
        ``net.state_dict()``, on any device.
    name, kind, architecture, data, steps, metrics, licence, command
        As in `ebl_stream.nets.card.Card`.

    Raises
    ------
    InputError
        The weights do not fit the architecture or hold NaN: they could not be loaded.
    pydantic.ValidationError
        The card is none.
    """
    require_shapes(_shapes(state), _shapes(_hollow(architecture).state_dict()), name)
    plain = {
        key: value.detach().to("cpu", torch.float32).contiguous()
        for key, value in state.items()
    }
    _require_finite(plain, name)
    weights = safetensors.torch.save(plain)
    card = Card(
        name=name,
        kind=kind,
        architecture=architecture,
        data=data,
        steps=steps,
        metrics=dict(metrics),
        licence=licence,
        command=command,
        software=f"ebl-stream {metadata.version('ebl-stream')}",
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    text = f"{card.model_dump_json(indent=2)}\n".encode()
    if len(weights) > MAX_WEIGHTS_BYTES or len(text) > MAX_CARD_BYTES:
        raise InputError(f"{name}: larger than what can be loaded")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{name}{WEIGHTS}", weights)
    _write(folder / f"{name}{CARD}", text)
    return folder / f"{name}{WEIGHTS}"


def load(name_or_path: str | Path) -> Model:
    """Read a net, by a shipped one's name or by the path of one of its two files.

    Raises
    ------
    InputError
        There is none, or it is not what its card says; one line.
    """
    path = _find(name_or_path)
    card = _card_beside(path)
    weights = _read(path, MAX_WEIGHTS_BYTES)
    require_header(weights, str(path))
    found = hashlib.sha256(weights).hexdigest()
    if found != card.weights_sha256:
        raise InputError(
            f"{path}: its SHA-256 begins with {found[:12]}, its card says "
            f"{card.weights_sha256[:12]}: it was damaged or exchanged"
        )
    net = _hollow(card.architecture)
    require_tensors(weights, _shapes(net.state_dict()), str(path))
    try:
        state = safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not safetensors: {str(error)[:100]}") from None
    _require_finite(state, str(path))
    net.load_state_dict(state, assign=True)
    return Model(card, net.eval(), path)


def names() -> list[str]:
    """Return the names of the nets that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob(f"*{CARD}"))


def shipped() -> list[Card]:
    """Return the cards of the nets that come with the package, by name."""
    return [_card_beside(SHIPPED / f"{name}{WEIGHTS}") for name in names()]


def _hollow(architecture: Architecture) -> nn.Module:
    """Return a net without values: takes no memory, and no random numbers."""
    with torch.device("meta"):
        return architecture.build()


def _require_finite(state: Mapping[str, Tensor], where: str) -> None:
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{where}: {name} holds NaN or infinity")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _find(name_or_path: str | Path) -> Path:
    """Return the path of the weights that are meant; they need not be there."""
    path = Path(os.path.expanduser(name_or_path))
    if path.suffix in (WEIGHTS, CARD):
        return path.with_suffix(WEIGHTS)
    name, known = str(name_or_path), names()
    if name in known:
        return SHIPPED / f"{name}{WEIGHTS}"
    if os.path.exists(path):
        raise InputError(f"{path} is no net: one is NAME{WEIGHTS} beside NAME{CARD}")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(
        f"no net is called {name[:80]!r}{hint} (there are: "
        f"{', '.join(known) or 'none'}; or give the path of a {WEIGHTS} file)"
    )


def _card_beside(path: Path) -> Card:
    place = path.with_suffix(CARD)
    if os.path.exists(path) and not os.path.exists(place):
        raise InputError(f"{path} has no card: {place.name} is not beside it")
    card = read_card(_read(place, MAX_CARD_BYTES), str(place))
    if card.name != path.stem:
        raise InputError(f"{place} is the card of {card.name!r}, not of {path.stem!r}")
    return card


def _read(path: Path, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes; never waits for a pipe."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {str(path)[:200]}: {why}") from None
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is not a regular file")
        with open(number, "rb", closefd=False) as file:
            content = file.read(limit + 1) if found.st_size <= limit else None
    finally:
        os.close(number)
    if content is None or len(content) > limit:
        raise InputError(f"{path} is larger than {limit} bytes")
    return content


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
