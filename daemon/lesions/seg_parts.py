"""Parts of a segment: connected components of its masks, grouped into lesions across frames."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage

from daemon.errors import LesionError

# A part of fewer pixels is a stray speck if the segment also has a part a hundred times as large; if all
# parts are small (marked calcifications), each is a lesion.
SPECK_PIXELS = 9
SPECK_FRACTION = 0.01
MAX_PARTS = 500  # of one segment on one frame; more is noise
_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, eq=False)
class SegmentPart:
    """One connected component: its bounding box's first corner and the mask in the box.

    `stack` and `number` identify its slice, see `daemon.lesions.stacks.slice_of`.
    """

    image_uid: str
    frame: int
    row: int
    column: int
    mask: np.ndarray
    pixels: int
    stack: tuple[str, ...]
    number: int

    def touches(self, other: SegmentPart) -> bool:
        """Return whether the two share a pixel."""
        top, left = max(self.row, other.row), max(self.column, other.column)
        bottom = min(self.row + self.mask.shape[0], other.row + other.mask.shape[0])
        right = min(self.column + self.mask.shape[1], other.column + other.mask.shape[1])
        if bottom <= top or right <= left:
            return False
        mine, others = (
            part.mask[top - part.row : bottom - part.row, left - part.column : right - part.column]
            for part in (self, other)
        )
        return bool((mine & others).any())


def parts_of_mask(
    mask: np.ndarray, image_uid: str, frame: int, stack: tuple[str, ...], number: int
) -> list[SegmentPart]:
    """Return the 8-connected components of a mask (rows, columns) on a frame of an image.

    Raises:
        LesionError: there are more than `MAX_PARTS`.
    """
    labels, count = ndimage.label(mask, _EIGHT_CONNECTED)
    if count > MAX_PARTS:
        raise LesionError(f"{count} separate parts on one frame, more than {MAX_PARTS}: noise, not marked lesions")
    parts = []
    for label, where in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[where] == label
        begin = (where[0].start, where[1].start)
        parts.append(SegmentPart(image_uid, frame, *begin, part, int(part.sum()), stack, number))
    return parts


def parts_of_lesions(parts: list[SegmentPart], *, is_tracked: bool) -> list[list[SegmentPart]]:
    """Group the parts of each lesion: those that overlap from one slice of a stack to the next; in order.

    `is_tracked`: the segment's Tracking UID makes it one lesion, also on slices apart, if it has at most one
    part on each slice of a stack.
    """
    group_of = {id(part): [part] for part in parts}
    on_slice: dict[tuple[tuple[str, ...], int], list[SegmentPart]] = {}
    for part in parts:
        on_slice.setdefault((part.stack, part.number), []).append(part)
    if is_tracked and all(len(here) == 1 for here in on_slice.values()):
        in_stack: dict[tuple[str, ...], list[SegmentPart]] = {}
        for part in parts:
            in_stack.setdefault(part.stack, []).append(part)
        return list(in_stack.values())
    for (stack, number), here in on_slice.items():
        for part, other in product(here, on_slice.get((stack, number + 1), ())):
            mine, others = group_of[id(part)], group_of[id(other)]
            if mine is not others and part.touches(other):
                mine += others
                group_of.update((id(moved), mine) for moved in others)
    return list({id(group): group for group in (group_of[id(part)] for part in parts)}.values())
