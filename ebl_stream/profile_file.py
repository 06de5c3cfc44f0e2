"""A beamline's profile as a file: found, read, layered on the default, explained.

A profile is YAML, layered on ``profiles/default.yaml``: a key that it does not
name keeps the default's value.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ebl_stream.errors import InputError
from ebl_stream.profile import ROOMS, Profile

MAX_PROFILE_BYTES = 65_536
MAX_DEPTH = 16


def shipped() -> dict[str, Path]:
    """Return the shipped profiles: name to path."""
    folder = resources.files("ebl_stream.profiles")
    return {
        Path(str(entry)).stem: Path(str(entry))
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    }


def load(name_or_path: str, overrides: dict[str, Any] | None = None) -> Profile:
    """Read a profile by name or path, layered on the default.

    Parameters
    ----------
    name_or_path : str
        A shipped profile's name, or the path of a YAML file.
    overrides : dict, optional
        ``{"dotted.path": value}``, applied last (the command line's ``--set``).

    Raises
    ------
    InputError
        The profile is unknown, unreadable or wrong; the message says where.
    """
    path = _find(name_or_path)
    data = _layer(_read(shipped()["default"]), _read(path))
    data.setdefault("name", path.stem)
    if path.stem != data["name"] and "name" not in _read(path):
        data["name"] = path.stem
    for dotted, value in (overrides or {}).items():
        _set(data, dotted, value)
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(error, name_or_path)) from None


def _find(name_or_path: str) -> Path:
    known = shipped()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise InputError(f"profile: there is no file {str(path)!r}")
        return path
    close = difflib.get_close_matches(name_or_path, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(
        f"no profile is called {name_or_path!r}{hint} "
        f"(there are: {', '.join(sorted(known))}; or give the path of a YAML file)"
    )


class _PlainLoader(yaml.SafeLoader):
    """YAML without anchors and tags: a few aliases can grow into gigabytes."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not allowed ({_line(event)})")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"tags are not allowed ({_line(event)})")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} ({_line(event)})")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.YAMLError(f"a key stands twice ({_line(node)})")
        return mapping


def _line(place: Any) -> str:
    return f"line {place.start_mark.line + 1}"


def parse_yaml(text: str) -> Any:
    """Parse YAML without tags and aliases, each key once.

    Raises
    ------
    yaml.YAMLError
        Anything else.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506  (a SafeLoader)
    except (ValueError, RecursionError) as error:  # days that are none, for example
        raise yaml.YAMLError(str(error)[:200]) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"profile {path}: {error.strerror or error}") from None
    if len(raw) > MAX_PROFILE_BYTES:
        raise InputError(f"profile {path}: larger than {MAX_PROFILE_BYTES} bytes")
    try:
        data = parse_yaml(raw.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())[:300]
        raise InputError(f"profile {path}: not valid YAML: {first}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"profile {path}: expected 'key: value' lines at the top")
    return data


def _layer(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Lay one profile on another: sections merge, everything else replaces."""
    merged = dict(base)
    for key, value in top.items():
        section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # A stage entry is one choice, not a section to be merged.
        if section and key not in ROOMS:
            merged[key] = _layer(merged[key], value)
        else:
            merged[key] = value
    return merged


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = data.get(parent)
        if isinstance(child, str) and parent in ROOMS:
            child = None
        data[parent] = dict(child) if isinstance(child, dict) else {}
        data = data[parent]
    data[last] = value


def _explain(error: ValidationError, name: str) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        hint = _did_you_mean(where, known)
        return (
            f"profile {name}: there is no key {where!r}{hint} "
            f"(there are: {', '.join(known)})"
        )
    return f"profile {name}: {where}: {first['msg']}, got {str(first['input'])[:80]!r}"


def _did_you_mean(where: str, known: list[str]) -> str:
    """Suggest a key of the same section, or the same key in another section."""
    last = where.split(".")[-1]
    elsewhere = [
        f"{section}.{key}" for section in known for key in _fields_at((section,), [])
    ]
    same = [path for path in elsewhere if path.endswith(f".{last}")]
    close = same or difflib.get_close_matches(last, known, n=1)
    close = close or difflib.get_close_matches(where, elsewhere, n=1)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _fields_at(
    loc: tuple[int | str, ...], otherwise: list[str] | None = None
) -> list[str]:
    """Return the keys of a section; ``otherwise`` where ``loc`` is no section."""
    model: type[BaseModel] = Profile
    for part in loc:
        field = model.model_fields.get(str(part))
        child = field.annotation if field else None
        if isinstance(child, type) and issubclass(child, BaseModel):
            model = child
        elif otherwise is not None:
            return otherwise
    return sorted(model.model_fields)
