"""Decode an image and extract one lesion, ms per image, beside pydicom's whole-frame decode.

mammod reads the file, decodes, normalises and extracts with the default bundle's policies; pydicom's figure
is reading and `pixel_array` alone, which every program in Python has to do first.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from benchmarks.case import Bar, Case, Row, Run, interleaved

OURS, PYDICOM = "mammod, decode and cut", "pydicom, decode"
JPEG_LOSSLESS = "JPEG Lossless"
ROWS, COLUMNS = 4096, 3328  # 27 MB


def _measure(run: Run) -> Iterator[Row]:
    from daemon.workers.bundle_source import default_bundle_path
    from model.bundle import load_bundle
    from model.image import open_image
    from model.roi_extraction import Cut, cut_rois

    manifest = load_bundle(default_bundle_path()).manifest
    shape = (512, 416) if run.tiny else (ROWS, COLUMNS)
    outline = np.array([[0.4, 0.5], [0.45, 0.55]]) * shape[::-1]

    def ours(path: Path) -> object:
        return cut_rois(open_image(path), [Cut(1, outline)], manifest.crop, manifest.normalisation)

    def whole(path: Path) -> object:
        return dcmread(path).pixel_array

    for name, path in _files(run.folder, shape).items():
        for warm in (ours, whole):
            warm(path)
        contenders = {OURS: partial(_timed, ours, path), PYDICOM: partial(_timed, whole, path)}
        yield from interleaved(run, name, "ms", contenders)


def _timed(do: Callable[[Path], object], path: Path, _pair: int) -> float:
    began = time.perf_counter()
    do(path)
    return (time.perf_counter() - began) * 1000


def _files(folder: Path, shape: tuple[int, int]) -> dict[str, Path]:
    """One breast-like image of 12 bits in every transfer syntax."""
    plain = folder / "plain.dcm"
    _image(shape).save_as(plain, enforce_file_format=True)
    files = {"uncompressed": plain}
    syntaxes: dict[str, UID] = {"RLE": RLELossless, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}
    for name, syntax in syntaxes.items():
        dataset = dcmread(plain)
        dataset.compress(syntax, generate_instance_uid=False)
        files[name] = folder / f"{syntax}.dcm"
        dataset.save_as(files[name], enforce_file_format=True)
    files[JPEG_LOSSLESS] = folder / "jpeg-lossless.dcm"
    subprocess.run(["dcmcjpeg", "+e1", plain, files[JPEG_LOSSLESS]], check=True, timeout=300)
    return files


def _image(shape: tuple[int, int]) -> Dataset:
    rows, columns = np.mgrid[0 : 1 : shape[0] * 1j, 0 : 1 : shape[1] * 1j]
    breast = np.clip(1.2 - columns**2 * 1.5 - (rows - 0.5) ** 2 * 4, 0, 1)
    noise = np.random.default_rng(0).normal(0, 12, shape)
    stored = np.where(breast > 0, np.clip(600 + 2500 * breast + noise, 0, 4095), 0).astype(np.uint16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.Modality, dataset.PresentationIntentType = "MG", "FOR PRESENTATION"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.ImagerPixelSpacing = [0.07, 0.07]
    dataset.WindowCenter, dataset.WindowWidth = 2000, 3000
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


CASE = Case(
    "decode",
    "one 27 MB image decoded, normalised and one lesion cut, beside pydicom's decode of the same file, ms",
    tuple(Bar(name, OURS, 1.0, PYDICOM, at_most=True) for name in ("uncompressed",)),
    _measure,
)
