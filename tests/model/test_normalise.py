"""Grey scale: against pydicom's own modality, VOI and window functions, and by hand where it has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, Sequence
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from model.errors import ImageError
from model.image import read_frame
from model.normalise import NormalisationPolicy, normalise
from tests.support.bundles import image, noise

VOI = NormalisationPolicy()
DEPTH = NormalisationPolicy(intensity="bit_depth")


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, True)])
@pytest.mark.parametrize("slope", [1, 2.5])
def test_windows_are_pydicoms(function: str | None, bits: int, signed: bool, slope: float) -> None:
    centre = 0 if signed else 2 ** (bits - 1)
    dataset = image(
        noise((9, 8), bits, signed),
        bits,
        WindowCenter=[centre * slope - 3, 1],
        WindowWidth=[2 ** (bits - 2) * slope, 5],
        RescaleSlope=slope,
        RescaleIntercept=-3,
    )
    if function:
        dataset.VOILUTFunction = function
    _assert_like_pydicom(dataset)


# Entries of 8 bits are in the next test but one: pydicom 3.0.2 wraps their indices past 255.
@pytest.mark.parametrize("bits_of_entry", [10, 12, 16])
def test_voi_luts_are_pydicoms_and_win_over_windows(bits_of_entry: int) -> None:
    entries = np.sort(np.random.default_rng(3).integers(0, 2**bits_of_entry, 500))
    dataset = image(noise((9, 8), 10), 10, WindowCenter=1, WindowWidth=2)
    dataset.VOILUTSequence = Sequence([_lut(entries, first=100, bits=bits_of_entry), _lut(entries[:7], 0, 16)])
    expected = apply_voi_lut(dataset.pixel_array, dataset) / (2**bits_of_entry - 1)
    np.testing.assert_allclose(_normalise(dataset, VOI), expected, atol=1e-6)


def test_modality_luts_are_pydicoms() -> None:
    entries = np.random.default_rng(3).integers(0, 2**16, 1024)
    dataset = image(noise((9, 8), 10), 10)
    dataset.ModalityLUTSequence = Sequence([_lut(entries, first=0, bits=16)])
    expected = apply_modality_lut(dataset.pixel_array, dataset) / (2**16 - 1)
    np.testing.assert_allclose(_normalise(dataset, DEPTH), expected, atol=1e-6)


def test_a_lut_as_words_or_packed_bytes_reads_alike() -> None:
    entries = np.arange(256)[::-1]
    dataset = image(noise((9, 8), 8), 8)
    grey = []
    for data in (entries.astype("<u2").tobytes(), entries.astype("u1").tobytes()):
        item = _lut(entries, first=0, bits=8)
        item.add_new("LUTData", "OW", data)
        dataset.VOILUTSequence = Sequence([item])
        grey.append(_normalise(dataset, VOI))
    np.testing.assert_array_equal(grey[0], grey[1])
    np.testing.assert_allclose(grey[0], 1 - dataset.pixel_array / 255, atol=1e-6)


def test_a_signed_lut_start_that_was_read_unsigned() -> None:
    dataset = image(noise((9, 8), 8, signed=True), 8)
    item = _lut(np.arange(256), first=0, bits=8)
    item.LUTDescriptor = [256, 65536 - 128, 8]
    dataset.VOILUTSequence = Sequence([item])
    np.testing.assert_allclose(_normalise(dataset, VOI), (dataset.pixel_array + 128.0) / 255, atol=1e-6)


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (12, True)])
def test_bit_depth_spans_what_bits_stored_allows(bits: int, signed: bool) -> None:
    stored = noise((6, 7), bits, signed)
    lowest = -(2 ** (bits - 1)) if signed else 0
    grey = _normalise(image(stored, bits), DEPTH)
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey, (stored.astype(float) - lowest) / (2**bits - 1), atol=1e-6)


def test_percentiles_are_of_the_frame_and_leave_padding_out() -> None:
    stored = np.arange(1, 1001, dtype=np.uint16).reshape(20, 50)
    policy = NormalisationPolicy(intensity="percentiles", percentiles=(10, 90))
    low, high = np.percentile(stored, (10, 90), method="lower")
    expected = np.clip((stored - float(low)) / (high - low), 0, 1)
    np.testing.assert_allclose(_normalise(image(stored), policy), expected, atol=1e-6)
    # Ten times as much padding does not move them.
    padded = np.concatenate([np.full((200, 50), 4000, np.uint16), stored])
    grey = _normalise(image(padded, PixelPaddingValue=4000), policy)
    np.testing.assert_allclose(grey[200:], expected, atol=1e-6)
    assert not grey[:200].any()


def test_percentiles_see_values_after_a_falling_rescale() -> None:
    stored = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    policy = NormalisationPolicy(intensity="percentiles", percentiles=(0, 100))
    grey = _normalise(image(stored, RescaleSlope=-1, RescaleIntercept=0), policy)
    np.testing.assert_allclose(grey, 1 - stored / 999, atol=1e-6)


def test_without_voi_the_policy_says_what_instead() -> None:
    stored = np.arange(100, 200, dtype=np.uint16).reshape(10, 10)
    np.testing.assert_allclose(_normalise(image(stored), VOI), stored / 4095, atol=1e-6)
    stretched = _normalise(image(stored), NormalisationPolicy(without_voi="percentiles", percentiles=(0, 100)))
    assert (stretched.min(), stretched.max()) == (0, 1)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "INVERSE", True),  # once, not twice
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", False),
    ],
)
def test_polarity(photometric: str, shape: str | None, inverted: bool) -> None:
    dataset = image(np.array([[0, 4095]], np.uint16), PhotometricInterpretation=photometric)
    if shape:
        dataset.PresentationLUTShape = shape
    assert _normalise(dataset, DEPTH).tolist() == ([[1, 0]] if inverted else [[0, 1]])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_in_either_polarity(photometric: str) -> None:
    stored = np.array([[0, 9, 10, 20, 21, 4095]], np.uint16)
    dataset = image(stored, PhotometricInterpretation=photometric, PixelPaddingValue=20, PixelPaddingRangeLimit=10)
    grey = _normalise(dataset, DEPTH)[0]
    assert not grey[2:4].any()
    assert (grey[[1, 4]] > 0).all()


def test_padding_of_signed_pixels_that_was_read_unsigned() -> None:
    stored = np.array([[-2048, -2047, 5]], np.int16)
    dataset = image(stored, PhotometricInterpretation="MONOCHROME1")
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2048)
    assert _normalise(dataset, DEPTH)[0, 0] == 0
    assert _normalise(dataset, DEPTH)[0, 1] > 0.99


@pytest.mark.parametrize(
    "raw", [{"PresentationIntentType": "FOR PROCESSING"}, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"}]
)
def test_for_processing_only_where_the_bundle_takes_it(raw: dict[str, Any]) -> None:
    # Sign 1: lower values are less X-ray intensity, so dense tissue is dark and inverted; no window applies.
    dataset = image(np.array([[0, 4095]], np.uint16), WindowCenter=1, WindowWidth=2, PixelIntensityRelationshipSign=1)
    for keyword, value in raw.items():
        setattr(dataset, keyword, value)
    with pytest.raises(ImageError, match="For Processing"):
        _normalise(dataset, VOI)
    allowed = NormalisationPolicy(for_processing=True)
    assert _normalise(dataset, allowed).tolist() == [[1, 0]]
    dataset.PixelIntensityRelationshipSign = -1
    assert _normalise(dataset, allowed).tolist() == [[0, 1]]


def test_an_image_of_one_value_is_black() -> None:
    flat = np.full((4, 4), 7, np.uint16)
    assert not _normalise(image(flat), NormalisationPolicy(intensity="percentiles")).any()
    all_padding = image(flat, PixelPaddingValue=7)
    assert not _normalise(all_padding, NormalisationPolicy(intensity="percentiles")).any()


def test_a_window_of_one_is_a_threshold() -> None:
    # PS3.3 C.11.2.1.2.1: with w = 1, x <= c - 0.5 is black and all above is white.
    grey = _normalise(image(np.array([[9, 10, 11]], np.uint16), WindowCenter=10.5, WindowWidth=1), VOI)
    assert grey.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"WindowCenter": 5, "WindowWidth": 0}, "Window Width 0"),
        ({"WindowCenter": 5, "WindowWidth": 0.5}, r"Window Width 0\.5"),
        ({"WindowCenter": 5, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, "Window Width 0 with .* SIGMOID"),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "'CUBIC'"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "Rescale Slope is 0"),
    ],
)
def test_what_cannot_be_is_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        _normalise(image(noise((4, 4)), **attributes), VOI)


def test_a_short_lut_is_refused() -> None:
    item = _lut(np.arange(10), first=0, bits=8)
    item.LUTDescriptor = [256, 0, 8]
    dataset = image(noise((4, 4)))
    dataset.VOILUTSequence = Sequence([item])
    with pytest.raises(ImageError, match="10 of 256 entries"):
        _normalise(dataset, VOI)


def _normalise(dataset: Dataset, policy: NormalisationPolicy) -> np.ndarray:
    return normalise(read_frame(dataset), policy)


def _assert_like_pydicom(dataset: Dataset) -> None:
    """Compare with pydicom's window output, scaled from the range of the rescaled stored values to 0..1."""
    rescaled = apply_modality_lut(dataset.pixel_array, dataset)
    expected = apply_voi_lut(rescaled, dataset)
    lowest = -(2 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0
    ends = [float(dataset.RescaleSlope) * (lowest + end) - 3 for end in (0, 2**dataset.BitsStored - 1)]
    np.testing.assert_allclose(_normalise(dataset, VOI), (expected - ends[0]) / (ends[1] - ends[0]), atol=1e-6)


def _lut(entries: np.ndarray, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = entries.astype(int).tolist()
    item["LUTData"].VR = "US"
    return item
