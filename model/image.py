"""Read one frame of a DICOM image: stored pixel values, decoded once, and the attributes that explain them.

The one way to pixels for training and daemon alike. Decoders: python-gdcm (JPEG lossless, JPEG 8 bit),
pylibjpeg-openjpeg (JPEG 2000), pyjpegls (JPEG-LS), pydicom itself (RLE, native).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.encaps import get_frame
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGExtended12Bit

from model.codestream import announced_size
from model.errors import ImageError

# Twice the largest film scan known (CBIS-DDSM: 40 million pixels); a larger header is damaged.
MAX_PIXELS = 100_000_000

_PIXEL_DATA = Tag("PixelData")
_LEFT_IN_FILE = 2**16  # bytes; `open_image` leaves longer values in the file

# What `Frame.header` holds, and the functional groups it may come from (PS3.3 C.7.6.16.2).
_KEYWORDS = (
    "SOPClassUID",
    "PhotometricInterpretation",
    "PresentationIntentType",
    "PresentationLUTShape",
    "PixelIntensityRelationshipSign",
    "BitsStored",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelSpacing",
    "PixelSpacingCalibrationType",
    "ImagerPixelSpacing",
    "EstimatedRadiographicMagnificationFactor",
    "NominalScannedPixelSpacing",
)
_MACROS = ("PixelMeasuresSequence", "FrameVOILUTSequence", "PixelValueTransformationSequence")


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded frame: `stored` is an integer array (rows, columns) of stored values (PS3.5 section 8).

    It may be mapped from the file: then it is read on access and not writable.

    `number` counts from 1. `header` has this frame's attributes of grey scale and geometry, those of
    functional groups on its top level; nothing in it identifies a patient.
    """

    number: int
    stored: np.ndarray
    header: Dataset


def open_image(path: Path) -> Dataset:
    """Return an image's data set for `read_frame`; long values stay in the file until they are accessed.

    Raises:
        ImageError: a value needed to read on is malformed. Other exceptions of `pydicom.dcmread` propagate.
    """
    deflated = read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    # A deflated data set is inflated as a whole: its values have no place in the file.
    try:
        return dcmread(path, defer_size=None if deflated else _LEFT_IN_FILE)
    except ValueError as error:  # such as a character set with a null character in it
        raise ImageError("the image cannot be read: a value of its header is damaged") from error


def read_frame(dataset: Dataset, frame: int = 1) -> Frame:
    """Decode frame `frame` (from 1) of a monochrome image of 2 to 16 bits.

    Raises:
        ImageError: no pixels, no such frame, not monochrome, an impossible matrix or bit depth, pixel data of
            another length than the matrix needs, a transfer syntax without decoder, or a damaged code stream.
    """
    syntax = _transfer_syntax(dataset)
    rows, columns, frames = _matrix(dataset)
    if not 1 <= frame <= frames:
        raise ImageError(f"there is no frame {frame}: the image has {frames}, counted from 1")
    _check_samples(dataset)
    bits = _bits(dataset)
    _check_decodable(syntax, bits)
    if not syntax.is_encapsulated:
        _check_length(dataset, rows * columns * frames)
        if (place := _left_in_file(dataset)) and syntax.is_little_endian:
            return Frame(frame, _mapped(dataset, place, frame, rows, columns), _header(dataset, frame))
    try:
        if syntax.is_encapsulated:
            code_stream = get_frame(dataset.PixelData, frame - 1, number_of_frames=frames)
            _check_announced(announced_size(code_stream), rows, columns, frame)
        stored, _ = get_decoder(syntax).as_array(dataset, index=frame - 1, raw=True)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # each decoder raises its own; all mean the same here
        reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
        raise ImageError(f"the pixel data ({syntax.name}) of frame {frame} cannot be decoded: {reason}") from error
    if stored.shape != (rows, columns):
        raise ImageError(f"frame {frame} decodes to {stored.shape}, but Rows x Columns is {rows} x {columns}")
    return Frame(frame, stored, _header(dataset, frame))


def _transfer_syntax(dataset: Dataset) -> UID:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if not syntax:
        raise ImageError("the image has no Transfer Syntax UID; read it from a Part 10 file")
    if not (_left_in_file(dataset) or dataset.get("PixelData")):
        raise ImageError("the object has no Pixel Data; an image of 8 to 16 bits was expected")
    return UID(syntax)


def _left_in_file(dataset: Dataset) -> tuple[int, int] | None:
    """Return the pixel data's offset in its file and its length in bytes; None if it was read."""
    # Not by tag, which would read it.
    element = next((element for element in dataset.values() if element.tag == _PIXEL_DATA), None)
    if not isinstance(element, RawDataElement) or element.value is not None or not isinstance(dataset.filename, str):
        return None
    start = element.value_tell
    return start, max(0, min(element.length, Path(dataset.filename).stat().st_size - start))


def _mapped(dataset: Dataset, place: tuple[int, int], frame: int, rows: int, columns: int) -> np.ndarray:
    kind = "i" if _integer(dataset, "PixelRepresentation", default=0) else "u"
    size = _integer(dataset, "BitsAllocated") // 8
    return np.memmap(
        dataset.filename,
        f"<{kind}{size}",
        mode="r",
        offset=place[0] + (frame - 1) * rows * columns * size,
        shape=(rows, columns),
    )


def _matrix(dataset: Dataset) -> tuple[int, int, int]:
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    frames = _integer(dataset, "NumberOfFrames", default=1) or 1
    if rows < 1 or columns < 1 or frames < 1 or rows * columns > MAX_PIXELS:
        raise ImageError(
            f"Rows x Columns x frames of {rows} x {columns} x {frames} cannot be: "
            f"1 to {MAX_PIXELS:,} pixels a frame were expected"
        )
    return rows, columns, frames


def _check_samples(dataset: Dataset) -> None:
    samples = _integer(dataset, "SamplesPerPixel", default=1)
    photometric = dataset.get("PhotometricInterpretation")
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(
            f"the image has {samples} sample(s) per pixel and Photometric Interpretation {photometric!r}; "
            "one sample, MONOCHROME1 or MONOCHROME2 was expected"
        )


def _bits(dataset: Dataset) -> int:
    allocated, stored = _integer(dataset, "BitsAllocated"), _integer(dataset, "BitsStored")
    high = _integer(dataset, "HighBit", default=stored - 1)
    representation = _integer(dataset, "PixelRepresentation", default=0)
    if allocated not in (8, 16) or not 2 <= stored <= allocated or high != stored - 1 or representation not in (0, 1):
        raise ImageError(
            f"Bits Allocated {allocated}, Bits Stored {stored}, High Bit {high}, Pixel Representation {representation} "
            "cannot be: 8 or 16 allocated, 2 to that many stored, High Bit one less, Pixel Representation 0 or 1"
        )
    return stored


def _check_decodable(syntax: UID, bits: int) -> None:
    if syntax == JPEGExtended12Bit and bits > 8:
        raise ImageError(
            f"JPEG Extended with {bits} bits has no decoder here; "
            "have the archive send it as JPEG lossless, JPEG 2000, JPEG-LS, RLE or uncompressed"
        )
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageError(f"pixel data of transfer syntax {syntax.name} ({syntax}) cannot be read") from None
    if not decoder.is_available:
        needs = "; ".join(decoder.missing_dependencies)
        raise ImageError(f"no decoder is installed for {syntax.name}; one of these would do: {needs}")


def _check_length(dataset: Dataset, pixels: int) -> None:
    expected = pixels * _integer(dataset, "BitsAllocated") // 8
    place = _left_in_file(dataset)
    actual = place[1] if place else len(dataset.PixelData)
    if actual not in (expected, expected + expected % 2):
        raise ImageError(f"Pixel Data holds {actual} bytes, Rows x Columns x frames asks for {expected}")


def _check_announced(announced: tuple[int, int] | None, rows: int, columns: int, frame: int) -> None:
    if announced not in (None, (rows, columns)):
        raise ImageError(
            f"the code stream of frame {frame} announces {announced}, but Rows x Columns is {rows} x {columns}"
        )


def _header(dataset: Dataset, frame: int) -> Dataset:
    header = Dataset()
    for source in (dataset, *_functional_groups(dataset, frame)):
        for keyword in _KEYWORDS:
            if keyword in source:
                try:
                    header[keyword] = source[keyword]
                except Exception as error:  # pydicom reads a value on access
                    raise ImageError(f"{keyword} cannot be read: {error}") from error
    return header


def _functional_groups(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    """Yield this frame's macros, the shared ones first, so that its own override them."""
    for sequence, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame - 1)):
        groups = dataset.get(sequence) or []
        if index < len(groups):
            for macro in _MACROS:
                yield from (groups[index].get(macro) or [])[:1]


def _integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value: Any = None
    try:
        value = dataset.get(keyword)
        if value is None and default is not None:
            return default
        number = float(value)
        if not math.isfinite(number) or number != int(number):
            raise ValueError
        return int(number)
    except (TypeError, ValueError):
        raise ImageError(f"{keyword} is {value!r}; one whole number was expected") from None
