"""Any other report: regions selected from an image, anywhere in the tree."""

from __future__ import annotations

from dataclasses import replace

from daemon.lesions.marks import Mark, shape_of
from daemon.lesions.measurement_sr import THREE_DIMENSIONAL, is_group, region_names
from daemon.lesions.sr_tree import ContentItem, ContentTree, described
from daemon.lesions.viewer_tools import draws_the_mark


def generic_marks(tree: ContentTree) -> list[Mark]:
    """Return a mark per item with SCOORDs outside measurement groups; one per SCOORD of a container."""
    owners: dict[ContentItem, list[ContentItem]] = {}
    for node in tree.root.descendants():
        if node.value_type in ("SCOORD", "SCOORD3D") and draws_the_mark(node) and not _in_a_group(node):
            holder = node.parent
            owners.setdefault(node if holder is None or holder.value_type == "CONTAINER" else holder, []).append(node)
    # Several measurements of one region repeat it: the first stands for all.
    first_of: dict[object, Mark] = {}
    for owner, regions in owners.items():
        mark = _mark(tree, owner, regions)
        first_of.setdefault(mark.shapes or owner, mark)
    return list(first_of.values())


def _in_a_group(node: ContentItem) -> bool:
    return any(is_group(around) for around in node.ancestors())


def _mark(tree: ContentTree, owner: ContentItem, regions: list[ContentItem]) -> Mark:
    description = described(owner)
    if owner.value and description.finding is None:
        description = replace(description, finding=owner.value, types=(owner.value, *description.types))
    scoords = [node for node in regions if node.value_type == "SCOORD"]
    return Mark(
        where=f"region at {owner.where}",
        description=description,
        shapes=tuple(shape_of(tree, scoord) for scoord in scoords),
        region_names=region_names(scoords),
        below=tuple(owner.descendants()),
        unusable=None if scoords else THREE_DIMENSIONAL,
    )
