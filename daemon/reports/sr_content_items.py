"""Content items of a structured report (PS3.3 C.17.3) as data sets, related by value and by reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as Concept


def container(
    relationship: str | None, concept: Concept, children: Iterable[Dataset], template: str | None = None
) -> Dataset:
    """Return a CONTAINER; the root has no relationship but the number of its `template` (PS3.16)."""
    item = _item(relationship, "CONTAINER", concept, children)
    item.ContinuityOfContent = "SEPARATE"
    if template is not None:
        mapping = Dataset()
        mapping.MappingResource, mapping.TemplateIdentifier = "DCMR", template
        item.ContentTemplateSequence = [mapping]
    return item


def code(
    relationship: str, concept: Concept, value: Concept | CodedConcept, children: Iterable[Dataset] = ()
) -> Dataset:
    """Return a CODE."""
    item = _item(relationship, "CODE", concept, children)
    item.ConceptCodeSequence = [_coded(value)]
    return item


def text(relationship: str, concept: Concept, value: str) -> Dataset:
    """Return a TEXT."""
    item = _item(relationship, "TEXT", concept)
    item.TextValue = value
    return item


def uidref(relationship: str, concept: Concept, uid: str) -> Dataset:
    """Return a UIDREF."""
    item = _item(relationship, "UIDREF", concept)
    item.UID = uid
    return item


def date(relationship: str, concept: Concept, value: str) -> Dataset:
    """Return a DATE."""
    item = _item(relationship, "DATE", concept)
    item.Date = value
    return item


def time(relationship: str, concept: Concept, value: str) -> Dataset:
    """Return a TIME."""
    item = _item(relationship, "TIME", concept)
    item.Time = value
    return item


def num(relationship: str, concept: Concept, value: float, unit: Concept, children: Iterable[Dataset] = ()) -> Dataset:
    """Return a NUM with its unit; `value` is written with up to sixteen characters."""
    item = _item(relationship, "NUM", concept, children)
    measured = Dataset()
    measured.NumericValue = f"{value:.10g}"
    measured.MeasurementUnitsCodeSequence = [_coded(unit)]
    item.MeasuredValueSequence = [measured]
    return item


def image(relationship: str, instance: Dataset, children: Iterable[Dataset] = (), frame: int | None = None) -> Dataset:
    """Return an IMAGE without a concept name; `frame` (from 1) for a multi-frame image."""
    item = _item(relationship, "IMAGE", None, children)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
    if frame is not None:
        reference.ReferencedFrameNumber = frame
    item.ReferencedSOPSequence = [reference]
    return item


def scoord(
    relationship: str, concept: Concept, graphic_type: str, points: np.ndarray, children: Iterable[Dataset]
) -> Dataset:
    """Return a SCOORD; `points` is (N, 2) of (column, row)."""
    item = _item(relationship, "SCOORD", concept, children)
    item.GraphicType = graphic_type
    item.GraphicData = np.asarray(points, dtype=np.float32).ravel().tolist()
    return item


def by_reference(relationship: str, path: Sequence[int]) -> Dataset:
    """Return a relationship to the content item at `path`: its position at each level, the root being 1."""
    item = Dataset()
    item.RelationshipType = relationship
    item.ReferencedContentItemIdentifier = list(path)
    return item


def _item(
    relationship: str | None, value_type: str, concept: Concept | None, children: Iterable[Dataset] = ()
) -> Dataset:
    item = Dataset()
    if relationship is not None:
        item.RelationshipType = relationship
    item.ValueType = value_type
    if concept is not None:
        item.ConceptNameCodeSequence = [_coded(concept)]
    content = list(children)
    if content:
        item.ContentSequence = content
    return item


def _coded(concept: Concept | CodedConcept) -> Dataset:
    if isinstance(concept, Dataset):
        return concept
    coded = Dataset()
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = concept[:3]
    return coded
