"""The eight orientations of a ROI, and answers averaged over some of them.

A network is not symmetric in its input: the same lesion turned gets another probability. Averaging the logits
of a subgroup of the eight orientations makes the answer the same for every turn within that subgroup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

ORIENTATIONS = 8
# A float32 sigmoid reaches 0 and 1 exactly, for which the logit is undefined.
_LEAST = 1e-7

Forward = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # (N, S, S) -> (N,), maps (N, h, w)


def turn(rois: np.ndarray, orientation: int) -> np.ndarray:
    """Return `rois` (..., S, S) in one of the eight orientations.

    0 to 3 are turned counterclockwise by that many quarter turns, 4 to 7 are mirrored left-right first.
    """
    mirrored = rois[..., ::-1] if orientation >= 4 else rois
    return np.ascontiguousarray(np.rot90(mirrored, orientation % 4, axes=(-2, -1)))


def turn_back(maps: np.ndarray, orientation: int) -> np.ndarray:
    """Undo `turn` on arrays (..., h, h)."""
    turned = np.rot90(maps, -(orientation % 4), axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if orientation >= 4 else turned)


def mean_logit(probabilities: np.ndarray) -> np.ndarray:
    """Return the probabilities (N,) whose logits are the mean logits of `probabilities` (K, N)."""
    p = np.clip(np.asarray(probabilities, np.float64), _LEAST, 1 - _LEAST)
    return 1 / (1 + np.exp(-np.mean(np.log(p / (1 - p)), axis=0)))


def averaged(
    forward: Forward, rois: np.ndarray, orientations: Sequence[int], max_batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run `rois` float32 (N, S, S) in each of `orientations`; average logits and heat maps turned back.

    The orientations of several ROIs share batches of at most `max_batch`. Returns the probability (N,) before
    calibration and the heat map (N, h, w).
    """
    if tuple(orientations) == (0,):
        turned = rois
    else:
        turned = np.stack([turn(rois, orientation) for orientation in orientations], axis=1).reshape(
            -1, *rois.shape[1:]
        )
    answers = [forward(turned[start : start + max_batch]) for start in range(0, len(turned), max_batch)]
    probability = np.concatenate([np.zeros(0, np.float32), *(answer[0] for answer in answers)])
    maps = np.concatenate([answer[1] for answer in answers]) if answers else np.zeros((0, 1, 1), np.float32)
    if tuple(orientations) == (0,):
        return probability, maps
    ways = len(orientations)
    by_way = maps.reshape(-1, ways, *maps.shape[1:])
    back = [turn_back(by_way[:, place], orientation) for place, orientation in enumerate(orientations)]
    return mean_logit(probability.reshape(-1, ways).T), np.mean(back, axis=0)
