from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import DataError
from training.split import COPIES, check_sides, patient_folds, split_samples

lesions = st.lists(st.tuples(st.integers(0, 15), st.booleans()), min_size=40, max_size=120)


@given(lesions, st.integers(0, 4), st.integers(0, 3))
def test_no_patient_is_on_two_sides_and_no_lesion_is_lost(rows: list[tuple[int, bool]], fold: int, seed: int) -> None:
    patients = [f"p{number}" for number, _ in rows] + [f"q{number}" for number in range(20)]
    labels = [label for _, label in rows] + [number % 2 == 0 for number in range(20)]
    split = split_samples(patients, labels, [None] * len(patients), fold=fold, seed=seed)
    sides = [set(np.array(patients)[part.samples]) for part in (split.train, split.validation, split.test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    everything = np.concatenate([split.train.samples, split.validation.samples, split.test.samples])
    assert sorted(everything) == list(range(len(patients)))
    assert (split.train.copies == -1).all()


def test_every_patient_is_tested_in_one_fold() -> None:
    patients = np.repeat([f"p{number}" for number in range(23)], 2)
    labels = np.arange(46) % 4 < 2
    tested = [
        split_samples(patients.tolist(), labels.tolist(), [None] * 46, fold=fold).test.samples for fold in range(5)
    ]
    assert sorted(np.concatenate(tested)) == list(range(46))
    shares = [labels[test].mean() for test in tested]
    assert max(shares) - min(shares) < 0.25  # malignant patients are spread


def test_own_test_group_wins_and_patients_on_both_sides_leave_training() -> None:
    patients = [f"p{number // 2}" for number in range(40)]
    groups: list[str | None] = ["test" if number >= 30 else "train" for number in range(40)]
    groups[0] = "test"  # p0 is on both sides
    labels = [number % 4 < 2 for number in range(40)]
    split = split_samples(patients, labels, groups)
    assert set(split.test.samples) == {0, *range(30, 40)}
    assert split.left_out.tolist() == [1]
    assert 1 not in split.train.samples and 1 not in split.validation.samples
    assert check_sides(patients, groups) == ["p0"]


def test_the_papers_split_mixes_copies_of_a_lesion() -> None:
    patients = [f"p{number}" for number in range(50)]
    split = split_samples(patients, [number % 2 == 0 for number in range(50)], [None] * 50, how="paper")
    assert len(split.train) + len(split.validation) == COPIES * 40  # a fifth is tested
    assert len(split.train) == round(0.8 * COPIES * 40)
    assert set(split.train.samples) & set(split.validation.samples)
    assert not set(split.train.samples) & set(split.test.samples)
    pairs = set(zip(split.train.samples, split.train.copies, strict=True))
    assert not pairs & set(zip(split.validation.samples, split.validation.copies, strict=True))


def test_the_same_seed_gives_the_same_folds_and_another_gives_others() -> None:
    patients, labels = np.array([f"p{number}" for number in range(60)]), np.arange(60) % 2 == 0
    assert (patient_folds(patients, labels, 5, 3) == patient_folds(patients, labels, 5, 3)).all()
    assert (patient_folds(patients, labels, 5, 3) != patient_folds(patients, labels, 5, 4)).any()


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(DataError, match="no split 'random'"):
        split_samples(["a"], [True], [None], how="random")
    with pytest.raises(DataError, match="no fold 5 of 5"):
        split_samples(["a"] * 9, [True] * 9, [None] * 9, fold=5)
    with pytest.raises(DataError, match="side of the split is empty"):
        split_samples(["a", "b"], [True, False], [None, None])
