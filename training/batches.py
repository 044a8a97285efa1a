"""Feed batches to a network for training and prediction. Keras 3 alone; any backend."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from model.orientation import averaged
from training.augment import STABLE, Augmentation, augment, paper_copy
from training.recipe import ORIENTATIONS
from training.roi_cache import Crops
from training.split import Part

_RANDOM = {"fly": Augmentation(), "stable": STABLE}


class Batches(keras.utils.PyDataset):
    """Serve the batches of one epoch: ((B, S, S, 1) float32 in 0..1, (B, 1) float32 labels).

    They are prefetched in threads; scipy's resampling releases the interpreter lock, so threads are enough.
    `seed` None keeps the order and the pixels unchanged. Training leaves out an incomplete last batch: batch
    normalisation would see too few samples.
    """

    def __init__(
        self,
        crops: Crops,
        part: Part,
        batch: int,
        *,
        augmentation: str = "none",
        seed: int | None = None,
        epoch: int = 0,
        workers: int = 2,
    ) -> None:
        # Keras makes batches in threads only from two workers on.
        super().__init__(workers=max(workers, 2), use_multiprocessing=False, max_queue_size=8)
        self._crops, self._part, self._batch = crops, part, batch
        self._labels = crops.malignant.astype(np.float32)
        self._augmentation, self._seed, self._epoch = augmentation, seed, epoch
        self._order = np.arange(len(part))
        if seed is not None:
            np.random.default_rng([seed, epoch]).shuffle(self._order)

    def __len__(self) -> int:
        whole = len(self._order) // self._batch
        return whole if self._seed is not None and whole else math.ceil(len(self._order) / self._batch)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        places = self._order[index * self._batch : (index + 1) * self._batch]
        rois = np.stack([self._roi(int(place)) for place in places])[..., None]
        return rois, self._labels[self._part.samples[places]][:, None]

    def _roi(self, place: int) -> np.ndarray:
        sample, copy = int(self._part.samples[place]), int(self._part.copies[place])
        if copy >= 0:  # the same copy in every epoch
            return paper_copy(self._crops.roi(sample), copy, np.random.default_rng([sample, copy]))
        if self._augmentation not in _RANDOM or self._seed is None:
            return self._crops.roi(sample)
        return augment(
            self._crops.source(sample),
            np.random.default_rng([self._seed, self._epoch, sample]),
            _RANDOM[self._augmentation],
            size=self._crops.pixels.shape[1],
            margin=self._crops.margin,
        )


def predict(model: keras.Model, crops: Crops, part: Part, batch: int = 16, orientations: int = 1) -> np.ndarray:
    """Return the model's probabilities of `part` (N,), float64, in the part's order.

    Logits are averaged over `orientations` orientations: 1, 2, 4 or 8.
    """
    batches = Batches(crops, part, batch)
    rois = (batches[number][0][..., 0] for number in range(len(batches)))
    return np.concatenate([predict_rois(model, some, batch, orientations) for some in rois])


def predict_rois(model: keras.Model, rois: np.ndarray, batch: int = 16, orientations: int = 1) -> np.ndarray:
    """Return the model's probabilities (N,), float64, of ROIs float32 (N, S, S) in 0..1; see `predict`."""

    def forward(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # One shape for every call: Keras recompiles for a new one.
        padded = np.concatenate([some, np.zeros((batch - len(some), *some.shape[1:]), np.float32)])[..., None]
        found = np.asarray(model.predict_on_batch(padded), float).reshape(-1)[: len(some)]
        return found, np.zeros((len(some), 1, 1))

    return averaged(forward, np.asarray(rois, np.float32), ORIENTATIONS[orientations], batch)[0]


def part_of(crops: Crops, numbers: Any = None) -> Part:
    """Return a part of the samples `numbers`, or of all samples, without copies."""
    chosen = np.arange(len(crops)) if numbers is None else np.asarray(numbers, int)
    return Part(chosen, np.full(len(chosen), -1))


def measure_batch_norm(model: keras.Model, batches: Batches, count: int) -> None:
    """Set each batch normalisation's moving averages to their plain mean over the first `count` batches."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.momentum for layer in norms]
    for number in range(min(count, len(batches))):
        for layer in norms:
            layer.momentum = number / (number + 1)
        model(batches[number][0], training=True)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum
