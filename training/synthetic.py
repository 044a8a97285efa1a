"""Write a small synthetic CBIS-DDSM in exactly TCIA's layout, to try the pipeline without the real data.

Benign phantoms are smooth and round, malignant ones spiculated; calcifications are a cluster of points in
such a shape. It has the real tree's oddities: both spellings of a column, line breaks in quoted paths, crop
and mask swapped, a mask of half the image's size, two abnormalities on one image, a missing mask, a patient
on both sides of the split.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from scipy import ndimage

ROWS, COLUMNS = 360, 260
_RADIUS = (14, 22)


@dataclass(frozen=True)
class _Case:
    """Describe one lesion on one image."""

    kind: str  # Mass or Calc
    side: str  # Training or Test
    patient: str
    breast: str
    view: str
    number: int
    malignant: bool
    row: int
    column: int

    @property
    def image(self) -> str:
        return f"{self.kind}-{self.side}_{self.patient}_{self.breast}_{self.view}"

    @property
    def name(self) -> str:
        return f"{self.image}_{self.number}"


def write_synthetic(folder: Path, patients: int = 24, seed: int = 0) -> None:
    """Write the four CSV files and the case folders of `patients` patients into `folder`.

    Their lesions are masses and calcifications, two views each. Every fourth patient is in the test part. The
    same arguments give the same pixels and UIDs.
    """
    cases = _cases(patients, np.random.default_rng([seed, 0]))
    rows: dict[str, list[dict[str, str]]] = {}
    for number, (image, lesions) in enumerate(_by_image(cases).items()):
        rows.setdefault(_table(lesions[0]), []).extend(_write_image(folder, image, lesions, number, seed))
    for table, content in rows.items():
        with (folder / table).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(content)


def _cases(patients: int, generator: np.random.Generator) -> list[_Case]:
    cases = []
    for number in range(patients):
        side = "Test" if number % 4 == 3 else "Training"
        kind = "Calc" if number % 3 == 2 else "Mass"
        malignant = bool((number // 4 + number) % 2)
        for view in ("CC", "MLO"):
            for lesion in range(2 if number == 1 and view == "CC" else 1):
                row = int(generator.integers(80, 130)) + 140 * lesion
                column = int(generator.integers(90, 170))
                cases.append(_Case(kind, side, f"P_{number + 1:05d}", "LEFT", view, lesion + 1, malignant, row, column))
    # As in the real data: trained on as a mass, tested on as a calcification.
    cases.append(_Case("Calc", "Test", "P_00001", "LEFT", "CC", 1, False, 120, 120))
    return cases


def _by_image(cases: list[_Case]) -> dict[str, list[_Case]]:
    images: dict[str, list[_Case]] = {}
    for case in cases:
        images.setdefault(case.image, []).append(case)
    return images


def _table(case: _Case) -> str:
    return f"{case.kind.lower()}_case_description_{'train' if case.side == 'Training' else 'test'}_set.csv"


def _write_image(folder: Path, image: str, lesions: list[_Case], number: int, seed: int) -> list[dict[str, str]]:
    generator = np.random.default_rng([seed, 1, number])
    film = ndimage.gaussian_filter(generator.normal(size=(ROWS, COLUMNS)), 12) * 3 + 0.3
    film += generator.normal(scale=0.02, size=film.shape)
    masks = []
    for lesion in lesions:
        shape = _shape(lesion, generator)
        film += _lesion(shape, lesion.kind, generator)
        masks.append(ndimage.binary_dilation(shape, iterations=2))
    pixels = np.rint(np.clip(film, 0, 1) * 65535).astype(np.uint16)
    image_path = _path(image, "full", "000000.dcm")
    _write(folder / image_path, pixels, image, "full mammogram images")
    return [
        _write_lesion(folder, lesion, mask, pixels, image_path, number)
        for lesion, mask in zip(lesions, masks, strict=True)
    ]


def _write_lesion(
    folder: Path, lesion: _Case, mask: np.ndarray, film: np.ndarray, image_path: str, number: int
) -> dict[str, str]:
    height, width = ndimage.find_objects(mask.astype(int))[0]
    crop = film[height, width]
    stored = mask[::2, ::2] if number == 2 else mask  # one of another size than its image
    swapped = lesion.kind == "Mass" and number % 5 == 0
    crop_path, mask_path = (_path(lesion.name, "roi", f"00000{place}.dcm") for place in ((1, 0) if swapped else (0, 1)))
    _write(folder / crop_path, crop, lesion.name, "cropped images")
    if number != 5:  # one mask is missing
        _write(folder / mask_path, stored.astype(np.uint8) * 255, lesion.name, "ROI mask images")
    is_mass = lesion.kind == "Mass"
    return {
        "patient_id": lesion.patient,
        "breast_density" if is_mass else "breast density": "3",
        "left or right breast": lesion.breast,
        "image view": lesion.view,
        "abnormality id": str(lesion.number),
        "abnormality type": "mass" if is_mass else "calcification",
        ("mass shape" if is_mass else "calc type"): "ROUND" if is_mass else "PLEOMORPHIC",
        ("mass margins" if is_mass else "calc distribution"): "SPICULATED" if lesion.malignant else "CIRCUMSCRIBED",
        "assessment": "4",
        "pathology": "MALIGNANT" if lesion.malignant else ("BENIGN", "BENIGN_WITHOUT_CALLBACK")[number % 2],
        "subtlety": "4",
        "image file path": image_path,
        # The CSV names crop and mask in the wrong order if they were swapped.
        "cropped image file path": (mask_path if swapped else crop_path) + "\n",
        "ROI mask file path": crop_path if swapped else mask_path,
    }


def _shape(lesion: _Case, generator: np.random.Generator) -> np.ndarray:
    """Return the lesion's mask, bool (ROWS, COLUMNS): a disc, or a star whose rays have sharp ends."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    y, x = rows - lesion.row, columns - lesion.column
    radius = generator.uniform(*_RADIUS)
    if not lesion.malignant:
        return np.hypot(y, x) < radius
    angle = np.arctan2(y, x) + generator.uniform(0, 2 * np.pi)
    rays = np.abs(np.cos(angle * int(generator.integers(4, 7)))) ** 6
    return np.hypot(y, x) < radius * (0.55 + 0.9 * rays)


def _lesion(shape: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray:
    """Return the grey that the lesion adds to the film: a soft mass, or bright points."""
    if kind == "Mass":
        return 0.35 * ndimage.gaussian_filter(shape.astype(float), 1.2)
    return ndimage.gaussian_filter(shape * (generator.random(shape.shape) > 0.93), 0.7, output=float)


def _path(name: str, series: str, file: str) -> str:
    return f"{name}/{_uid(name, 'study')}/{_uid(name, series)}/{file}"


def _uid(*parts: str) -> UID:
    return generate_uid(entropy_srcs=["mammod synthetic", *parts])


def _write(path: Path, pixels: np.ndarray, name: str, series: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(name, series, "instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID = meta.MediaStorageSOPClassUID
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = _uid(name, "study"), _uid(name, series)
    image.Modality, image.SeriesDescription = "MG", series
    image.PatientName = image.PatientID = name
    image.PatientBirthDate = image.PatientSex = ""
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated = image.BitsStored = pixels.dtype.itemsize * 8
    image.HighBit = image.BitsStored - 1
    image.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    image["PixelData"].VR = "OW" if image.BitsAllocated > 8 else "OB"
    image.save_as(path, enforce_file_format=True)
