"""Cut samples into the crops cache: open each image once, normalise and cut it by the model room's code."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from config.errors import MammodError
from model.crop import CropPolicy, cut_roi, image_spacing
from model.image import Frame, read_frame
from model.normalise import NormalisationPolicy, normalise
from model.roi import Roi
from training.errors import DataError
from training.roi_cache import Crops, Entry, PartialCache
from training.samples import Reading, Sample, Skipped

# Film scans of about 0.05 mm, and digital mammograms, at the detail of 299 x 299 films (0.78 mm x 0.5 mm,
# the median).
COARSE_FILMS = CropPolicy(kind="lesion", factor=1.6, minimum_mm=35, assumed_spacing_mm=0.05, resolution_mm=0.6)
PAPER = CropPolicy()  # 299 x 299 image pixels of any size
# Detail in both squeezed films and a digital mammogram: 35 mm on 112 pixels are 0.31 mm a pixel, the films'
# own pixels 0.17 x 0.29 mm. Four orientations of 112 pixels cost as much as two of 160.
FILMS = CropPolicy(kind="lesion", factor=1.6, minimum_mm=35, assumed_spacing_mm=0.05, size=112)
POLICIES = {"films": FILMS, "coarse-films": COARSE_FILMS, "paper": PAPER}
MARGIN = 1.4  # of a wide crop: the diagonal of a square, so that a turned ROI is still image
_PICTURE_BITS = {"L": 8, "I;16": 16, "I": 16}


def read_policies(policy: str) -> tuple[CropPolicy, NormalisationPolicy]:
    """Return the policies of a name in POLICIES, or of a JSON file.

    The file has "crop" and optionally "normalisation".

    Raises:
        DataError: it is neither.
    """
    if policy in POLICIES:
        return POLICIES[policy], NormalisationPolicy()
    try:
        given = json.loads(Path(policy).read_text(encoding="utf-8"))
        return CropPolicy(**given["crop"]), NormalisationPolicy(**given.get("normalisation", {}))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(
            f"policy {policy!r} is neither {', '.join(POLICIES)} nor a JSON file of policies: {error}"
        ) from error


def prepare(
    reading: Reading,
    folder: Path,
    crop: CropPolicy,
    normalisation: NormalisationPolicy,
    *,
    workers: int = 1,
    wide: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> Crops:
    """Cut every sample of `reading` in `workers` processes and write the cache `folder`.

    A killed call can be resumed. A sample whose image cannot be read or cut is left out and listed with the
    rows that the reader skipped. `wide` keeps a second crop of MARGIN times the side and twice the pixels
    with each ROI, for augmentation. `report` is called with the number of samples done and the number of all
    samples.

    Raises:
        DataError: `folder` exists, two samples share an identity, or none could be cut.
    """
    samples = reading.samples
    identities = [sample.identity for sample in samples]
    if len(set(identities)) < len(identities):
        twice = next(name for name in identities if identities.count(name) > 1)
        raise DataError(f"two samples are called {twice!r}; identities must be unique within a cache")
    policy = {"crop": crop.model_dump(mode="json"), "normalisation": normalisation.model_dump(mode="json")}
    outlines = hashlib.sha256(b"".join(sample.outline.tobytes() for sample in samples)).hexdigest()
    key = json.dumps([policy, wide, outlines, [(str(sample.image), sample.identity) for sample in samples]])
    policies = (crop, _widened(crop)) if wide else (crop,)
    partial = PartialCache(
        folder,
        crop.size,
        max(len(samples), 1),
        hashlib.sha256(key.encode()).hexdigest(),
        wide=policies[-1].size if wide else None,
    )
    done = partial.done
    left = [sample for sample in samples if sample.identity not in done]
    for number, found in enumerate(
        _cut_all(left, policies, normalisation, workers), start=1 + len(samples) - len(left)
    ):
        if isinstance(found, Skipped):
            partial.skip(vars(found))
        else:
            partial.add(found[0], *found[1:])
        if report:
            report(number, len(samples))
    skipped = [*(vars(row) for row in reading.skipped), *partial.skipped]
    return partial.finish(policy, skipped, MARGIN if wide else 1.0)


def _widened(crop: CropPolicy) -> CropPolicy:
    """Return the policy whose box is MARGIN times as wide, on twice the pixels."""
    sizes = ("side_px", "side_mm", "factor", "minimum_px", "minimum_mm")
    wider = {name: value * MARGIN for name in sizes if (value := getattr(crop, name)) is not None}
    if crop.side_px is not None:
        wider["side_px"] = round(wider["side_px"])
    return CropPolicy(**{**crop.model_dump(), **wider, "size": 2 * crop.size})


def open_frame(path: Path) -> Frame:
    """Return the one frame of a DICOM image or of an 8- or 16-bit grey picture (PNG, TIFF).

    Raises:
        DataError: the file is neither, or a colour picture.
        ImageError: a DICOM image that cannot be decoded.
    """
    try:
        return read_frame(pydicom.dcmread(path))
    except InvalidDicomError:
        pass
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}") from error
    try:
        with Image.open(path) as picture:
            bits = _PICTURE_BITS.get(picture.mode)
            if bits is None:
                raise DataError(f"{path.name} is a picture of mode {picture.mode}; 8- or 16-bit grey was expected")
            stored = np.asarray(picture)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path.name} is neither a DICOM file nor a picture that can be read") from error
    header = Dataset()
    header.BitsStored, header.PixelRepresentation, header.PhotometricInterpretation = bits, 0, "MONOCHROME2"
    return Frame(1, stored, header)


Result = tuple[Entry, np.ndarray] | tuple[Entry, np.ndarray, np.ndarray] | Skipped
_Task = tuple[list[Sample], tuple[CropPolicy, ...], NormalisationPolicy]


def _cut_all(
    samples: Sequence[Sample], crops: tuple[CropPolicy, ...], normalisation: NormalisationPolicy, workers: int
) -> Iterator[Result]:
    """Cut image by image, each sample by all of `crops`."""
    images = [list(group) for _, group in groupby(samples, key=lambda sample: sample.image)]
    tasks: list[_Task] = [(group, crops, normalisation) for group in images]
    if workers <= 1:
        yield from chain.from_iterable(map(_cut_image, tasks))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from chain.from_iterable(pool.map(_cut_image, tasks, chunksize=4))


def _cut_image(task: _Task) -> list[Result]:
    samples, crops, normalisation = task
    try:
        frame = open_frame(samples[0].image)
        image, header = normalise(frame, normalisation), frame.header
    except MammodError as error:
        return [Skipped(sample.identity, str(error)) for sample in samples]
    return [_cut(sample, image, header, crops) for sample in samples]


def _cut(sample: Sample, image: np.ndarray, header: Dataset, crops: tuple[CropPolicy, ...]) -> Result:
    try:
        spacing = sample.spacing or image_spacing(header)
        roi, *wide = (cut_roi(image, sample.outline, spacing, crop) for crop in crops)
    except MammodError as error:
        return Skipped(sample.identity, str(error))
    entry = _entry(sample, roi)
    return (entry, roi.pixels, wide[0].pixels) if wide else (entry, roi.pixels)


def _entry(sample: Sample, roi: Roi) -> Entry:
    return Entry(
        identity=sample.identity,
        dataset=sample.dataset,
        malignant=sample.malignant,
        patient=sample.patient,
        group=sample.group,
        kind=sample.kind,
        box=(roi.box.left, roi.box.top, roi.box.right, roi.box.bottom),
        padded=roi.padded,
        mm_per_pixel=roi.mm_per_pixel,
        spacing_assumed=roi.spacing_assumed or sample.spacing_assumed,
        descriptors=sample.descriptors,
    )
