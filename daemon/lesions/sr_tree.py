"""The content tree of a structured report (PS3.3 C.17.3), walked without recursion and with a limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from pydicom.dataset import Dataset

from daemon.errors import LesionError
from daemon.lesions.anatomy import Naming
from daemon.lesions.lesion import Code
from daemon.lesions.references import ImageReference, code_of, image_reference, items, numbers, same, uid_of

MAX_ITEMS = 100_000  # each costs a quarter of a millisecond; a report of 250 lesions has 10,000
MAX_DEPTH = 500  # templates reach ten
_TRACKING_ID = ("112039", "DCM")
_TRACKING_UID = ("112040", "DCM")
_FINDING = ("121071", "DCM")
_FINDING_CATEGORY = ("276214006", "SCT")
_FINDING_SITE = ("363698007", "SCT")
_LATERALITY = ("272741003", "SCT")
LABELS = (
    ("125309", "DCM"),
    ("121106", "DCM"),
)  # Short Label (dwv), Comment (OHIF): the reader's text beside the mark
_FREE_TEXT = "CORNERSTONEFREETEXT"  # OHIF's placeholder code for typed words


@dataclass(eq=False)
class ContentItem:
    """One content item: `number` is its place among its siblings, from 1."""

    item: Dataset
    number: int = 1
    parent: ContentItem | None = None
    children: list[ContentItem] = field(default_factory=list)

    @cached_property
    def value_type(self) -> str:
        """The Value Type, such as CONTAINER; empty if absent."""
        return str(self.item.get("ValueType") or "")

    @cached_property
    def name(self) -> Code | None:
        """The Concept Name."""
        return code_of(self.item, "ConceptNameCodeSequence")

    @cached_property
    def value(self) -> Code | None:
        """The value of a CODE item."""
        return code_of(self.item, "ConceptCodeSequence")

    @property
    def where(self) -> str:
        """The Referenced Content Item Identifier, for a message."""
        path = [self.number, *(node.number for node in self.ancestors())]
        return "content item " + ".".join(map(str, reversed(path)))

    def named(self, value: str, scheme: str) -> bool:
        """Return whether the Concept Name is this code."""
        return same(self.name, value, scheme)

    def descendants(self) -> Iterator[ContentItem]:
        """Yield this node and all below it, in document order."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))

    def ancestors(self) -> Iterator[ContentItem]:
        """Yield this node's parent, its parent's parent, up to the root."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent


class ContentTree:
    """The content tree of an SR data set.

    Raises:
        LesionError: more than `MAX_ITEMS` content items, or nested deeper than `MAX_DEPTH`.
    """

    def __init__(self, report: Dataset) -> None:
        self.root = ContentItem(report)
        self._references: dict[ContentItem, list[ImageReference]] = {}
        level, total, depth = [self.root], 1, 0
        while level:
            for node in level:
                content = items(node.item, "ContentSequence")
                node.children = [ContentItem(item, number, node) for number, item in enumerate(content, start=1)]
            level = [child for node in level for child in node.children]
            total, depth = total + len(level), depth + 1
            if total > MAX_ITEMS or depth > MAX_DEPTH:
                raise LesionError(f"the report has {total} content items, {depth} deep; too many to be one")

    def target(self, node: ContentItem) -> ContentItem:
        """Return the node, or the node that it refers to if it is a relationship by reference."""
        path = numbers(node.item, "ReferencedContentItemIdentifier")
        if path[:1] != (1,):
            return node
        target = self.root
        for number in path[1:]:
            if not 1 <= number <= len(target.children):
                return node
            target = target.children[number - 1]
        return target

    def image_of(self, scoord: ContentItem) -> ImageReference | None:
        """Return the image a SCOORD is selected from, by value or by reference.

        If it names no image, as with some writers: the one image named by the nearest enclosing item.
        """
        for holder in (scoord, *scoord.ancestors()):
            named = {
                reference.sop_instance_uid: reference
                for reference in self.references_under(holder)
                if not reference.to_segmentation
            }
            if named:
                return next(iter(named.values())) if len(named) == 1 else None
        return None

    def references_under(self, node: ContentItem) -> list[ImageReference]:
        """Return the images and segmentations of a node's IMAGE children, by value or by reference."""
        if node not in self._references:  # each region in a container asks
            self._references[node] = self._read_references(node)
        return self._references[node]

    def _read_references(self, node: ContentItem) -> list[ImageReference]:
        return [
            reference
            for child in node.children
            if (target := self.target(child)).value_type == "IMAGE"
            for item in items(target.item, "ReferencedSOPSequence")[:1]
            if (reference := image_reference(item))
        ]


@dataclass(frozen=True)
class Description:
    """A report's description of a mark, besides its geometry."""

    tracking_id: str | None = None
    tracking_uid: str | None = None
    finding: Code | None = None
    finding_site: Code | None = None
    laterality: Code | None = None
    types: tuple[Code, ...] = ()
    categories: tuple[Code, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[Code, ...]:
        """Every code that the report gives the mark, types first."""
        return self.types + self.categories

    @property
    def naming(self) -> Naming:
        """The report's names for the mark."""
        return Naming(self.types, self.texts, self.categories)


def described(owner: ContentItem) -> Description:
    """Return tracking, finding, site and laterality of a measurement group (TID 1410) or finding."""
    texts: dict[tuple[str, str], str] = {}
    codes: dict[tuple[str, str], Code] = {}
    types, categories, words = [], [], []
    for child in owner.children:
        if child.named(*_TRACKING_ID) and child.item.get("TextValue"):
            texts.setdefault(_TRACKING_ID, str(child.item.TextValue))
        if any(child.named(*label) for label in (*LABELS, _FINDING)) and child.item.get("TextValue"):
            words.append(str(child.item.TextValue))
        if child.named(*_TRACKING_UID) and (uid := uid_of(child.item, "UID")):
            texts.setdefault(_TRACKING_UID, uid)
        value = child.value
        if value is None:
            continue
        if value.value == _FREE_TEXT:
            words.append(value.meaning)
            continue
        for concept in (_FINDING, _FINDING_CATEGORY, _FINDING_SITE, _LATERALITY):
            if child.named(*concept):
                codes.setdefault(concept, value)
        if child.named(*_FINDING):
            types.append(value)
        if child.named(*_FINDING_CATEGORY):
            categories.append(value)
        if child.named(*_FINDING_SITE):
            for modifier in child.children:
                if modifier.named(*_LATERALITY) and modifier.value:
                    codes.setdefault(_LATERALITY, modifier.value)
    return Description(
        texts.get(_TRACKING_ID),
        texts.get(_TRACKING_UID),
        codes.get(_FINDING),
        codes.get(_FINDING_SITE),
        codes.get(_LATERALITY),
        tuple(types),
        tuple(categories),
        tuple(words),
    )
