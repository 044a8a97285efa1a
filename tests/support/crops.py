"""Small caches, splits and a stand-in network, so that training tests take moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.recipe import Recipe
from training.roi_cache import Crops, Entry, write_cache
from training.split import Split, split_samples

SIZE = 32
POLICY = {"crop": {"kind": "pixels", "side_px": SIZE, "size": SIZE}, "normalisation": {}}


def entry(number: int, *, malignant: bool, patient: str, group: str | None = None, kind: str = "mass") -> Entry:
    return Entry(
        identity=f"lesion {number}",
        dataset="made-up",
        malignant=malignant,
        patient=patient,
        group=group,
        kind=kind,
        box=(0, 0, SIZE, SIZE),
        padded=0.0,
        mm_per_pixel=None,
        spacing_assumed=False,
    )


def small_crops(folder: Path, count: int = 48, *, grey: float | None = None) -> Crops:
    """`count` crops of two per patient; malignant ones carry a bright diagonal, or all are of one `grey`."""
    generator = np.random.default_rng(1)

    def made():  # type: ignore[no-untyped-def]
        for number in range(count):
            malignant = bool(number // 2 % 2)
            noise = generator.random((SIZE, SIZE)) * 0.5
            roi = np.full((SIZE, SIZE), grey) if grey is not None else noise + 0.5 * malignant * np.eye(SIZE)
            yield entry(number, malignant=malignant, patient=f"patient {number // 2}"), roi

    return write_cache(folder, made(), SIZE, count, POLICY, [])


def small_split(crops: Crops, how: str = "patient", *, copies: bool = False) -> Split:
    return split_samples(crops.patients.tolist(), crops.malignant.tolist(), crops.groups, how=how, copies=copies)


def small_network(recipe: Recipe, size: int):  # type: ignore[no-untyped-def]
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((size, size, 1)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.GlobalMaxPooling2D(),
            layers.Dropout(recipe.dropout),
            layers.Dense(1, activation="sigmoid", dtype="float32"),
        ]
    )
