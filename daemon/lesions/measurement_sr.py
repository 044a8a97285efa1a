"""Measurement groups of TID 1500 reports that hold a region (TID 1410, 1411, 1501)."""

from __future__ import annotations

from collections.abc import Iterator

from daemon.lesions.lesion import Code
from daemon.lesions.marks import Mark, shape_of
from daemon.lesions.sr_tree import ContentItem, ContentTree, described
from daemon.lesions.viewer_tools import draws_the_mark

_MEASUREMENT_GROUP = ("125007", "DCM")
THREE_DIMENSIONAL = (
    "its region is given in a frame of reference in millimetres (SCOORD3D); expected one in image pixels (SCOORD)"
)


def is_group(node: ContentItem) -> bool:
    """Return whether a content item is a Measurement Group container."""
    return node.value_type == "CONTAINER" and node.named(*_MEASUREMENT_GROUP)


def measurement_marks(tree: ContentTree) -> list[Mark]:
    """Return a mark per group with a region: own item (highdicom), below a measurement (OHIF), or segment."""
    groups = (node for node in tree.root.descendants() if is_group(node))
    return [mark for group in groups if (mark := _mark(tree, group))]


def _mark(tree: ContentTree, group: ContentItem) -> Mark | None:
    below = list(_of_this_group(group))
    scoords = [node for node in below if node.value_type == "SCOORD" and draws_the_mark(node)]
    references = [reference for node in below for reference in tree.references_under(node)]
    segments = tuple(dict.fromkeys(reference for reference in references if reference.to_segmentation))
    if scoords or segments:
        unusable = None
    elif any(node.value_type == "SCOORD3D" and draws_the_mark(node) for node in below):
        unusable = THREE_DIMENSIONAL
    else:
        return None
    description = described(group)
    return Mark(
        where=f"measurement group at {group.where}",
        description=description,
        shapes=tuple(shape_of(tree, scoord) for scoord in scoords),
        segments=segments,
        source_images=tuple(reference for reference in references if not reference.to_segmentation),
        region_names=region_names(scoords),
        below=tuple(below),
        unusable=unusable,
    )


def region_names(scoords: list[ContentItem]) -> tuple[Code, ...]:
    """Return the regions' names, by which breast and pectoral muscle outlines are recognised."""
    return tuple(name for scoord in scoords if (name := scoord.name))


def _of_this_group(group: ContentItem) -> Iterator[ContentItem]:
    """Yield the group and all items below it, except groups within it."""
    waiting = [group]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(child for child in reversed(node.children) if not is_group(child))
