"""What documents must look like before anything believes them.

Bluesky's own schema lets pass shapes of 10^18 by 10^18, ranges of 10^15 frames that
run backwards, negative event numbers. Only what the house makes use of is looked at;
other keys are the beamline's own.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from ebl_stream.ingest.measure import MAX_NDIM

MAX_UID = 512
MAX_NAME = 256
MAX_PATH = 4096
MAX_SEQ_NUM = 2**40
MAX_RANGE = 10_000_000
"""Events of one StreamDatum."""
MAX_LENGTH = 2**31
"""Of one axis."""
MAX_VALUES = 2**36
"""Product of a shape."""
MAX_MULTIPLIER = 65_536
"""Frames per event."""

_DTYPE = re.compile(
    r"[<>=|]?[?biufcmMOSUV][0-9]{0,4}|bool|u?int(8|16|32|64)|float(16|32|64)|"
    r"complex(64|128)|str|object"
)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that steer a terminal")
    return text


def _sane_shape(shape: Any) -> Any:
    if not isinstance(shape, list | tuple) or len(shape) > MAX_NDIM:
        raise ValueError(f"expected at most {MAX_NDIM} lengths")
    for n in shape:
        # Tables have axes of no known length.
        if n is not None and (type(n) is not int or not 0 <= n <= MAX_LENGTH):
            raise ValueError(f"a length is not between 0 and {MAX_LENGTH}")
    if math.prod(n or 1 for n in shape) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    return shape


def _sane_dtype(dtype: Any) -> Any:
    if isinstance(dtype, str) and not _DTYPE.fullmatch(dtype):
        raise ValueError("no dtype of plain values")
    if not isinstance(dtype, str | list | tuple | None):
        raise ValueError("expected a text or a list")
    return dtype


Uid: TypeAlias = Annotated[
    StrictStr, Field(min_length=1, max_length=MAX_UID), AfterValidator(_printable)
]
Name: TypeAlias = Annotated[
    StrictStr, Field(max_length=MAX_NAME), AfterValidator(_printable)
]
Location: TypeAlias = Annotated[
    StrictStr, Field(max_length=MAX_PATH), AfterValidator(_printable)
]
Time: TypeAlias = StrictFloat | StrictInt | None
"""Nothing depends on it, so NaN and clocks that jump do no harm."""
SeqNum: TypeAlias = Annotated[StrictInt, Field(ge=0, le=MAX_SEQ_NUM)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    time: Time = None


class Start(_Document):
    """RunStart."""

    uid: Uid


class Stop(_Document):
    """RunStop."""

    run_start: Uid
    uid: Uid | None = None
    exit_status: Name | None = None
    reason: StrictStr | None = None
    num_events: dict[StrictStr, SeqNum] | None = None


class DataKey(BaseModel):
    """One entry of a descriptor's data keys."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    shape: Annotated[Any, AfterValidator(_sane_shape)] = ()
    dtype: Name | None = None
    dtype_numpy: Annotated[Any, AfterValidator(_sane_dtype)] = None
    external: Name | None = None
    units: Name | None = None


def _sane_data_keys(data_keys: dict[str, Any]) -> dict[str, Any]:
    # One by one: the first that is wrong ends it, so that errors do not pile up.
    for key, data_key in data_keys.items():
        if len(key) > MAX_NAME or not key.isprintable():
            raise ValueError("a data key has a name that no device has")
        DataKey.model_validate(data_key)
    return data_keys


class Descriptor(_Document):
    """EventDescriptor."""

    uid: Uid
    run_start: Uid
    name: Name
    data_keys: Annotated[dict[StrictStr, Any], AfterValidator(_sane_data_keys)]
    object_keys: dict[Any, Any] | None = None
    hints: dict[Any, Any] | None = None
    configuration: dict[Any, Any] | None = None


class Event(_Document):
    """Event."""

    uid: Uid
    descriptor: Uid
    seq_num: Annotated[StrictInt, Field(ge=1, le=MAX_SEQ_NUM)]
    data: dict[Any, Any]
    timestamps: dict[Any, Any] | None = None
    filled: dict[StrictStr, StrictBool | StrictStr | None] | None = None


class Range(BaseModel):
    """A half-open range."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    start: SeqNum
    stop: SeqNum

    @model_validator(mode="after")
    def _is_range(self) -> Range:
        if not 0 <= self.stop - self.start <= MAX_RANGE:
            raise ValueError(f"expected at most {MAX_RANGE} events, forwards")
        return self


class StreamDatum(_Document):
    """StreamDatum."""

    uid: Uid
    stream_resource: Uid
    descriptor: Uid
    indices: Range
    seq_nums: Range


class Parameters(BaseModel):
    """What a StreamResource says of its dataset."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    dataset: Location | None = None
    path: Location | None = None
    multiplier: Annotated[StrictInt, Field(ge=1, le=MAX_MULTIPLIER)] | None = None


class StreamResource(_Document):
    """StreamResource, of today or of 2023."""

    uid: Uid
    run_start: Uid | None = None
    data_key: Name = ""
    mimetype: Name = ""
    uri: Location = ""
    parameters: Parameters = Parameters()
    root: Location = ""
    resource_path: Location = ""
    resource_kwargs: dict[Any, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_where(self) -> StreamResource:
        if "mimetype" in self.model_fields_set and not (self.data_key and self.uri):
            raise ValueError("needs data_key and uri")
        return self


class Resource(_Document):
    """Resource."""

    uid: Uid
    run_start: Uid | None = None
    spec: Name
    root: Location | None = None
    resource_path: Location
    resource_kwargs: dict[Any, Any]


class Datum(_Document):
    """Datum."""

    datum_id: Uid
    resource: Uid
    datum_kwargs: dict[Any, Any]


MODELS: dict[str, type[_Document]] = {
    "start": Start,
    "stop": Stop,
    "descriptor": Descriptor,
    "event": Event,
    "stream_datum": StreamDatum,
    "stream_resource": StreamResource,
    "resource": Resource,
    "datum": Datum,
}
"""By the document's name; pages and bulk documents are unpacked first."""
