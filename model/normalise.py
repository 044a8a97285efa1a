"""Conversion of stored values to grey: float32 in 0..1, bright is dense, by the bundle's policy.

A pixel's grey depends on its stored value alone, so the whole chain (modality LUT or rescale, VOI LUT or
window, range, polarity) is computed once for the table of possible values, at most 65,536, and looked up per
pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator
from pydicom import Dataset

from model.errors import ImageError
from model.image import Frame

_FOR_PROCESSING = (
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray Image Storage - For Processing
    "1.2.840.10008.5.1.4.1.1.1.2.1",  # Digital Mammography X-Ray Image Storage - For Processing
)


class NormalisationPolicy(BaseModel):
    """The rule for computing grey; part of a bundle's manifest.

    `intensity` selects the values that become 0 and 1: "voi", the image's own VOI LUT, else its first window
    (PS3.3 C.11.2), and `without_voi` if it has neither; "percentiles", `percentiles` (low, high) of the
    frame's values; "bit_depth", the ends of the range that Bits Stored allows (the paper's scaling). Modality
    LUT and rescale always apply (C.11.1). Padding (Pixel Padding Value and Range Limit, C.7.5.1.1.2) becomes
    0 and is left out of the percentiles. For Processing images are refused unless `for_processing`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    intensity: Literal["voi", "percentiles", "bit_depth"] = "voi"
    without_voi: Literal["percentiles", "bit_depth"] = "bit_depth"
    percentiles: tuple[float, float] = (0.5, 99.5)
    for_processing: bool = False

    @model_validator(mode="after")
    def _are_percentiles(self) -> Self:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles {low}, {high}: 0 <= low < high <= 100 was expected")
        return self


@dataclass(frozen=True, eq=False)
class Grey:
    """A normalised frame as an image of float32 (rows, columns) in 0..1, computed on access."""

    frame: Frame
    table: np.ndarray
    lowest: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        return self.frame.stored.shape

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        stored = self.frame.stored[part]
        # A decoder may give values past Bits Stored.
        return np.take(self.table, stored.astype(np.int32) - self.lowest if self.lowest else stored, mode="clip")


def normalise(frame: Frame, policy: NormalisationPolicy) -> np.ndarray:
    """Return the grey of a whole frame, float32 (rows, columns) in 0..1; see `grey`."""
    return grey(frame, policy)[:, :]


def grey(frame: Frame, policy: NormalisationPolicy) -> Grey:
    """Return the grey of a frame in 0..1, bright = dense.

    Presentation LUT Shape decides the polarity if given, else the Photometric Interpretation (PS3.3
    C.11.6, C.7.6.3.1.2); for a For Processing image it is Pixel Intensity Relationship Sign (C.8.11.3.1.2).

    Raises:
        ImageError: a For Processing image that the policy refuses; an impossible window, LUT or rescale.
    """
    header = frame.header
    raw = is_for_processing(header)
    if raw and not policy.for_processing:
        raise ImageError(
            "the image is For Processing and this bundle was made for For Presentation images only; "
            "send the For Presentation image, or use a bundle that was trained for both"
        )
    lowest, highest = _stored_range(header)
    stored = np.arange(lowest, highest + 1)
    padding = _padding(stored, header)
    values, ends = _modality(stored, header)
    table = _intensity(values, ends, padding, frame, policy, use_voi=not raw)
    if _is_inverted(header, raw):
        table = 1 - table
    table[padding] = 0
    return Grey(frame, table.astype(np.float32), lowest)


def is_for_processing(header: Dataset) -> bool:
    """Return whether an image holds raw values (Presentation Intent Type, PS3.3 C.8.11.1; or SOP class)."""
    return header.get("PresentationIntentType") == "FOR PROCESSING" or header.get("SOPClassUID") in _FOR_PROCESSING


def _stored_range(header: Dataset) -> tuple[int, int]:
    bits = int(header.BitsStored)
    if header.get("PixelRepresentation", 0) == 1:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Return which stored values are padding, bool like `stored`; the range's ends may be in any order."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = header.get("PixelPaddingRangeLimit")
    ends = [_signed(int(end), header) for end in (value, value if limit is None else limit)]
    return (stored >= min(ends)) & (stored <= max(ends))


def _signed(value: int, header: Dataset) -> int:
    """Convert a value of VR "US or SS" that was read as unsigned although the pixels are signed."""
    return value - 2**16 if header.get("PixelRepresentation", 0) == 1 and value >= 2**15 else value


def _modality(stored: np.ndarray, header: Dataset) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the values after the modality LUT or rescale, float64, and their possible range."""
    if header.get("ModalityLUTSequence"):
        table, first, bits = _lut(header.ModalityLUTSequence[0], header)
        return _look_up(stored, table, first), (0, 2**bits - 1)
    slope, intercept = _number(header, "RescaleSlope", 1), _number(header, "RescaleIntercept", 0)
    if slope == 0:
        raise ImageError("Rescale Slope is 0; all pixels would be the same")
    values = stored * slope + intercept
    return values, (float(values.min()), float(values.max()))


def _intensity(
    values: np.ndarray,
    ends: tuple[float, float],
    padding: np.ndarray,
    frame: Frame,
    policy: NormalisationPolicy,
    use_voi: bool,
) -> np.ndarray:
    header, kind = frame.header, policy.intensity
    if kind == "voi":
        if use_voi and header.get("VOILUTSequence"):
            table, first, bits = _lut(header.VOILUTSequence[0], header)
            return np.clip(_look_up(values, table, first) / (2**bits - 1), 0, 1)
        if use_voi and _first(header, "WindowWidth") is not None and _first(header, "WindowCenter") is not None:
            return _window(values, header)
        kind = policy.without_voi
    if kind == "percentiles":
        ends = _percentiles(values, padding, frame, policy.percentiles)
    low, high = ends
    if low == high:  # an image of one value: nothing to stretch
        return np.zeros(values.shape)
    return np.clip((values - low) / (high - low), 0, 1)


def _window(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Apply the first window, to 0..1 (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    centre, width = _number(header, "WindowCenter", 0), _number(header, "WindowWidth", 0)
    function = header.get("VOILUTFunction") or "LINEAR"
    least = 1 if function == "LINEAR" else 0
    if width < least or (width == 0):
        raise ImageError(f"Window Width {width:g} with VOI LUT Function {function} cannot be (PS3.3 C.11.2.1)")
    if function == "SIGMOID":
        # exp overflows to infinity at the dark end, for which the limit of 0 is right.
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ImageError(f"VOI LUT Function {function!r} is unknown; LINEAR, LINEAR_EXACT or SIGMOID was expected")
    if width == 0:
        return (values > centre).astype(float)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _percentiles(
    values: np.ndarray, padding: np.ndarray, frame: Frame, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Return the values below which the given shares of the frame's pixels lie, padding not counted."""
    lowest = _stored_range(frame.header)[0]
    places = np.clip(frame.stored.astype(np.int32) - lowest, 0, len(values) - 1)
    counts = np.bincount(places.ravel(), minlength=len(values))
    counts[padding] = 0
    order = np.argsort(values, kind="stable")
    total = np.cumsum(counts[order])
    if total[-1] == 0:
        return 0.0, 0.0
    ranks = np.searchsorted(total, [share / 100 * (total[-1] - 1) for share in percentiles], side="right")
    return float(values[order[ranks[0]]]), float(values[order[ranks[1]]])


def _is_inverted(header: Dataset, raw: bool) -> bool:
    if raw:
        # 1: lower values mean less X-ray intensity, so dense tissue is dark.
        return header.get("PixelIntensityRelationshipSign", 1) == 1
    shape = header.get("PresentationLUTShape")
    return shape == "INVERSE" if shape else header.PhotometricInterpretation == "MONOCHROME1"


def _lut(item: Dataset, header: Dataset) -> tuple[np.ndarray, int, int]:
    """Return a LUT's entries, first mapped value and bits of an entry (PS3.3 C.11.1.1.1, C.11.2.1.1)."""
    try:
        entries, first, bits = (int(part) for part in item.LUTDescriptor)
        entries = entries or 2**16
        data = item.LUTData
        if isinstance(data, bytes):
            # Two 8-bit entries share a word if the length implies it.
            word = ">u2" if item.original_encoding[1] is False else "<u2"
            data = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else word)
        table = np.atleast_1d(np.asarray(data))[:entries].astype(float)
    except (AttributeError, TypeError, ValueError) as error:
        raise ImageError(f"a look-up table cannot be read: {error}") from error
    if len(table) < entries or not 8 <= bits <= 16:
        raise ImageError(f"a look-up table has {len(table)} of {entries} entries of {bits} bits; 8 to 16 were expected")
    return table, _signed(first, header), bits


def _look_up(values: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    return table[np.clip(np.rint(values).astype(int) - first, 0, len(table) - 1)]


def _first(header: Dataset, keyword: str) -> object:
    value = header.get(keyword)
    if value is None or isinstance(value, str | int | float):
        return value
    return value[0] if len(value) else None


def _number(header: Dataset, keyword: str, default: float) -> float:
    value = _first(header, keyword)
    try:
        number = default if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise ImageError(f"{keyword} is {value!r}; a number was expected")
    return number
