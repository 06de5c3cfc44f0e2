"""NTNDArray to image: shapes, types, codecs, and what is refused with its reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from p4p import Value
from pva_camera import CODECS, MEMBER, TYPE, ntndarray

from ebl_stream.ingest.feed import FeedError
from ebl_stream.ingest.ntndarray import attribute, decode


def image(shape: tuple[int, int], code: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape).cumsum(axis=1) * 50).astype(code)


@pytest.mark.parametrize("codec", ["", *CODECS])
@pytest.mark.parametrize("code", MEMBER)
def test_every_type_and_codec_comes_back(code: str, codec: str) -> None:
    # Not square, and no multiple of bitshuffle's eight: rows and columns must not swap.
    sent = image((37, 53), code)
    got = decode(ntndarray(sent, 1, codec=codec))
    assert got.dtype == sent.dtype
    np.testing.assert_array_equal(got, sent)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 90),
    columns=st.integers(2, 90),
    code=st.sampled_from(["u1", "u2", "u4", "f4"]),
    codec=st.sampled_from(["lz4", "blosc", "bslz4"]),
    seed=st.integers(0, 1000),
)
def test_any_shape_comes_back(
    rows: int, columns: int, code: str, codec: str, seed: int
) -> None:
    sent = image((rows, columns), code, seed)
    np.testing.assert_array_equal(decode(ntndarray(sent, 1, codec=codec)), sent)


def test_a_frame_of_many_bitshuffle_blocks() -> None:
    sent = image((512, 640), "u2")
    np.testing.assert_array_equal(decode(ntndarray(sent, 1, codec="bslz4")), sent)


@pytest.mark.parametrize("codec", CODECS)
def test_the_array_may_be_longer_than_what_the_codec_filled(codec: str) -> None:
    """One converter of areaDetector posts the whole buffer, in the pixels' type."""
    sent = image((64, 80), "u2") // 1000
    value = ntndarray(sent, 1, codec=codec)
    packed = np.zeros(sent.size, "u2")
    packed.view("u1")[: value.compressedSize] = value.value
    value.value = ("ushortValue", packed)
    np.testing.assert_array_equal(decode(value), sent)


def test_an_axis_of_length_one_is_none() -> None:
    sent = image((8, 9), "u2")
    value = ntndarray(sent, 1)
    value.dimension = [{"size": 9}, {"size": 8}, {"size": 1}]
    np.testing.assert_array_equal(decode(value), sent)


def test_attributes_are_read_as_text() -> None:
    value = ntndarray(image((8, 9), "u2"), 1, location="/exchange/data")
    assert attribute(value, "HDF5FrameLocation") == "/exchange/data"
    assert attribute(value, "ColorMode") == "0"
    assert attribute(value, "Nothing") is None


def broken(**fields: object) -> Value:
    value = ntndarray(image((16, 17), "u2"), 1, codec="lz4")
    for name, field in fields.items():
        value[name] = field
    return value


def color() -> Value:
    value = ntndarray(image((16, 27), "u2"), 1)
    value.dimension = [{"size": 3}, {"size": 9}, {"size": 16}]
    return value


def short() -> Value:
    value = ntndarray(image((16, 17), "u2"), 1)
    value.dimension = [{"size": 17}, {"size": 18}]
    return value


def unpacked_wrongly(codec: str) -> Value:
    value = ntndarray(image((16, 17), "u2"), 1, codec=codec)
    garbage = np.random.default_rng(1).integers(0, 256, value.value.size, np.uint8)
    value.value = ("ubyteValue", garbage)
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Value(TYPE, {}), "without a value"),
        (color(), "no monochrome image"),
        (short(), "272 pixels, but its shape is"),
        (broken(codec={"name": "jpeg", "parameters": 3}), "'jpeg' is not read here"),
        (broken(codec={"name": "lz4", "parameters": 77}), "data type is 77"),
        (broken(codec={"name": "lz4", "parameters": "u2"}), "data type is 'u2'"),
        (broken(codec={"name": "lz4", "parameters": 1}), "544 bytes uncompressed"),
        (broken(compressedSize=10**6), "of 1000000 bytes are there"),
        (unpacked_wrongly("lz4"), "codec 'lz4'"),
        (unpacked_wrongly("blosc"), "codec 'blosc'"),
        (unpacked_wrongly("bslz4"), "codec 'bslz4'"),
    ],
)
def test_what_is_no_image_says_why(value: Value, why: str) -> None:
    with pytest.raises(FeedError, match=why):
        decode(value)
