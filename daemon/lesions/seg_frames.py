"""Frames of a segmentation: the segment, source image and decoded pixels of each (PS3.3 C.8.20)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLSLossless, JPEGLSNearLossless, RLELossless

from daemon.errors import LesionError
from daemon.lesions.references import ImageReference, image_frame, image_reference, items, numbers, size

# GDCM aborts the process on some unexpected data, so other decoders are preferred.
_DECODERS = {
    RLELossless: "pydicom",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
}


@dataclass(frozen=True)
class SegmentationFrame:
    """One frame of a segmentation: its segment (None in a label map) and the image it was drawn on."""

    index: int
    segment: int | None
    source: ImageReference | None
    several: bool = False


def source_images(dataset: Dataset) -> tuple[str, ...]:
    """Return the SOP Instance UIDs of a SEG's source images, in order; works without Pixel Data.

    Each frame's own source, else the one image of the referenced series.

    Raises:
        LesionError: the SEG names no image.
    """
    sources = [frame.source for frame in segmentation_frames(dataset) if frame.source is not None]
    if not sources:
        raise LesionError(
            "the segmentation names no source image: expected a Source Image Sequence for each frame, or exactly one "
            "instance in the Referenced Series Sequence"
        )
    return tuple(dict.fromkeys(source.sop_instance_uid for source in sources))


def segmentation_frames(dataset: Dataset) -> list[SegmentationFrame]:
    """Return the segment and source image of each frame, in order."""
    shared = (items(dataset, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    only_image = _only_referenced_image(dataset)
    frames = []
    for index, group in enumerate(items(dataset, "PerFrameFunctionalGroupsSequence")):
        identification = items(group, "SegmentIdentificationSequence") or items(shared, "SegmentIdentificationSequence")
        segment = numbers(identification[0], "ReferencedSegmentNumber") if identification else ()
        sources = _derivation_sources(group) or _derivation_sources(shared)
        several = len({source.sop_instance_uid for source in sources}) > 1
        source = sources[0] if sources else only_image
        frames.append(SegmentationFrame(index, segment[0] if segment else None, source, several))
    return frames


def _derivation_sources(group: Dataset) -> list[ImageReference]:
    return [
        reference
        for derivation in items(group, "DerivationImageSequence")
        for source in items(derivation, "SourceImageSequence")
        if (reference := image_reference(source))
    ]


def _only_referenced_image(dataset: Dataset) -> ImageReference | None:
    """Return the image of the Referenced Series Sequence if it names just one, else None."""
    references = {
        reference.sop_instance_uid: reference
        for series in items(dataset, "ReferencedSeriesSequence")
        for instance in items(series, "ReferencedInstanceSequence")
        if (reference := image_reference(instance))
    }
    return next(iter(references.values())) if len(references) == 1 else None


def image_and_frame(dataset: Dataset, frame: SegmentationFrame, images: Mapping[str, Dataset]) -> tuple[str, int]:
    """Return SOP Instance UID and frame (from 1) of a segmentation frame's source image."""
    if frame.source is None:
        raise LesionError(f"frame {frame.index + 1} names no source image")
    if frame.several:
        raise LesionError(f"frame {frame.index + 1} names several source images; expected the one it was drawn on")
    image, number = image_frame(frame.source, images)
    if _differ(dataset.get("FrameOfReferenceUID"), image.get("FrameOfReferenceUID")):
        raise LesionError(
            f"frame {frame.index + 1} lies in another frame of reference than image {frame.source.sop_instance_uid}"
        )
    return frame.source.sop_instance_uid, number


def _differ(own: str | None, other: str | None) -> bool:
    return bool(own and other and own != other)


def decode_frame(dataset: Dataset, index: int) -> np.ndarray:
    """Return the stored values (rows, columns) of one frame."""
    if "PixelData" not in dataset:
        raise LesionError("the segmentation has no Pixel Data")
    try:
        syntax = dataset.file_meta.TransferSyntaxUID
        if dataset.BitsAllocated == 1 and not syntax.is_encapsulated:
            return _unpack(dataset, index)
        return pixel_array(dataset, index=index, decoding_plugin=_DECODERS.get(syntax, ""))
    except LesionError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged data
        raise LesionError(
            f"frame {index + 1} of the segmentation cannot be decoded: its pixel data ({_encoding(dataset)}) are damaged or "
            "of an encoding that is not read; send it again, uncompressed"
        ) from error


def _encoding(dataset: Dataset) -> str:
    return str(getattr(dataset.file_meta.get("TransferSyntaxUID"), "name", "of unknown transfer syntax"))


def _unpack(dataset: Dataset, index: int) -> np.ndarray:
    """Return one frame of bit-packed pixels: frames are not padded, lowest bit first (PS3.5 8.1.1)."""
    rows, columns = size(dataset)
    begin, end = index * rows * columns, (index + 1) * rows * columns
    packed = np.frombuffer(dataset.PixelData, np.uint8)[begin // 8 : -(-end // 8)]
    bits = np.unpackbits(packed, bitorder="little")[begin % 8 :][: rows * columns]
    if bits.size != rows * columns:
        raise LesionError(f"the Pixel Data end before frame {index + 1} of the segmentation")
    return bits.reshape(rows, columns)
