"""Small images and bundles for the tests of the model room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from model.bundle import Architecture, Bundle, Description, save_bundle
from model.crop import CropPolicy
from model.normalise import NormalisationPolicy

MG_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"


def image(stored: np.ndarray, bits: int = 12, **attributes: Any) -> Dataset:
    """An uncompressed monochrome image of `stored`, (rows, columns) or (frames, rows, columns), with
    `attributes`.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = MG_FOR_PRESENTATION
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "MG"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    dataset.BitsAllocated = stored.dtype.itemsize * 8
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    dataset["PixelData"].VR = "OW" if stored.dtype.itemsize == 2 else "OB"
    return dataset


def noise(shape: tuple[int, ...], bits: int = 12, signed: bool = False, seed: int = 0) -> np.ndarray:
    """Random stored values that use every bit, the extremes among them."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    kind = np.dtype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")
    values = np.random.default_rng(seed).integers(low, high, shape).astype(kind)
    values[..., 0, 0], values[..., -1, -1] = low, high - 1
    return values


def square(column: float, row: float, side: float) -> np.ndarray:
    """A square outline around a centre."""
    half = side / 2
    return np.array(
        [
            [column - half, row - half],
            [column + half, row - half],
            [column + half, row + half],
            [column - half, row + half],
        ]
    )


def small_description(**changes: Any) -> Description:
    """A bundle's description for the smallest network there is: mobilenet_v2 at 75 pixels, plain head."""
    facts: dict[str, Any] = {
        "name": "small",
        "version": "1.0",
        "architecture": Architecture(network="mobilenet_v2", head="plain", input_size=75),
        "crop": CropPolicy(kind="pixels", size=75, side_px=75),
        "normalisation": NormalisationPolicy(),
        "trained": True,
        "licence": "Apache-2.0",
    }
    return Description(**{**facts, **changes})


def small_bundle(path: Path, **changes: Any) -> Bundle:
    """A bundle with random weights that says it was trained."""
    from model.networks import build_network

    return save_bundle(path, small_description(**changes), build_network("mobilenet_v2", "plain", input_size=75))
