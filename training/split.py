"""Split samples into training, validation and test: by patient (default), or as in the paper.

"patient": no patient is on two sides. If the data set has its own test group, that is the test; a patient of
it who is also in the training group (CBIS-DDSM split masses and calcifications apart, so there are some) is
left out of training. Otherwise the test is one of `folds` folds of patients. Validation is a share of the
remaining patients. Augmentation comes after the split.

"paper": the training samples are first enlarged six times, and the copies then split at random, 80 % and 20
%. Copies of one lesion fall on both sides, so the validation figures of this split are too good. Its test
part is the same as above, but patients on both sides of the data set's own split stay.

"all": no test part, for the network that is shipped once cross-validation has measured its recipe: everybody
trains but the validation part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.errors import DataError

SPLITS = ("patient", "paper", "all")
COPIES = 6


@dataclass(frozen=True, eq=False)
class Part:
    """Hold one side of a split: sample numbers (N,) and the copy of each.

    Offline copies are numbered from 0; -1 is the unchanged sample.
    """

    samples: np.ndarray
    copies: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, eq=False)
class Split:
    """Hold the three sides, and the samples left out because their patient is in the test group too."""

    how: str
    train: Part
    validation: Part
    test: Part
    left_out: np.ndarray


def split_samples(
    patients: Sequence[str],
    malignant: Sequence[bool],
    groups: Sequence[str | None],
    *,
    how: str = "patient",
    folds: int = 5,
    fold: int = 0,
    validation: float = 0.2,
    seed: int = 0,
    copies: bool = False,
) -> Split:
    """Split the samples, given by their patients, labels and own groups.

    The same arguments give the same split. With `copies` the training side holds the paper's six copies of
    each sample, made after the split by patient.

    Fold `fold` of `folds` is the test if no sample has a group; `validation` is the share of the other
    patients.

    Raises:
        DataError: an unknown kind of split, a fold that does not exist, a side that would be empty, or "all"
            if the data set keeps a test group.
    """
    if how not in SPLITS:
        raise DataError(f"there is no split {how!r}; known: {', '.join(SPLITS)}")
    patient = np.asarray(patients)
    label = np.asarray(malignant, bool)
    in_test = _no_test(patient, groups) if how == "all" else _test_side(patient, label, groups, folds, fold, seed)
    shared = np.isin(patient, patient[in_test]) & ~in_test
    rest = np.flatnonzero(~in_test if how == "paper" else ~in_test & ~shared)
    generator = np.random.default_rng([seed, 1])
    if how == "paper":
        pairs = np.array([(number, copy) for number in rest for copy in range(COPIES)]).reshape(-1, 2)
        pairs = generator.permutation(pairs)
        cut = round(0.8 * len(pairs))
        train, held = Part(*pairs[:cut].T), Part(*pairs[cut:].T)
    else:
        held_fold = patient_folds(patient[rest], label[rest], max(round(1 / validation), 2), seed + 1) == 0
        train, held = _plain(rest[~held_fold]), _plain(rest[held_fold])
        if copies:
            train = Part(np.repeat(train.samples, COPIES), np.tile(np.arange(COPIES), len(train)))
    test = _plain(np.flatnonzero(in_test))
    for name, part in (("training", train), ("validation", held), ("test", test)):
        if not len(part) and (name, how) != ("test", "all"):
            raise DataError(f"the {name} side of the split is empty: {len(patient)} samples are too few for it")
    return Split(how, train, held, test, np.array([], int) if how == "paper" else np.flatnonzero(shared))


def patient_folds(patients: np.ndarray, malignant: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold (0 ... folds - 1) of each sample (N,), keeping patients whole.

    Malignant patients are spread evenly; the order is shuffled by `seed`.
    """
    generator = np.random.default_rng([seed, 0])
    names = np.unique(patients)
    sick = np.array([malignant[patients == name].any() for name in names])
    fold_of = {}
    for offset, side in enumerate((names[sick], names[~sick])):
        for position, name in enumerate(generator.permutation(side)):
            fold_of[name] = (position + offset) % folds
    return np.array([fold_of[name] for name in patients], int)


def check_sides(patients: Sequence[str], groups: Sequence[str | None]) -> list[str]:
    """Return the patients who are on more than one side of a given split, in order."""
    sides: dict[str, set[str | None]] = {}
    for patient, group in zip(patients, groups, strict=True):
        sides.setdefault(patient, set()).add(group)
    return sorted(patient for patient, found in sides.items() if len(found) > 1)


def _test_side(
    patient: np.ndarray, label: np.ndarray, groups: Sequence[str | None], folds: int, fold: int, seed: int
) -> np.ndarray:
    own = np.array([group == "test" for group in groups])
    if own.any():
        return own
    if not 0 <= fold < folds:
        raise DataError(f"there is no fold {fold} of {folds}; folds count from 0")
    return patient_folds(patient, label, folds, seed) == fold


def _no_test(patient: np.ndarray, groups: Sequence[str | None]) -> np.ndarray:
    if "test" in groups:
        raise DataError("the split 'all' would train on the data set's own test group; prepare its training part alone")
    return np.zeros(len(patient), bool)


def _plain(samples: np.ndarray) -> Part:
    return Part(samples, np.full(len(samples), -1))
