"""Mammography CAD SR (PS3.16 TID 4000): its single image findings."""

from __future__ import annotations

from dataclasses import replace

from daemon.errors import LesionError
from daemon.lesions.marks import Mark, Shape, shape_of
from daemon.lesions.sr_tree import ContentItem, ContentTree, described

CAD_ROOT = ("111036", "DCM")
_FINDING = ("111059", "DCM")
MAX_FINDINGS = 2000  # each may be inferred from any other; a report of four images has some dozens
_CENTER = ("111010", "DCM")
_OUTLINE = ("111041", "DCM")
_RENDERING_INTENT = ("111056", "DCM")
_NOT_FOR_PRESENTATION = ("111152", "DCM")
_HIDDEN = "the report marks it as not for presentation"


def cad_marks(tree: ContentTree) -> list[Mark]:
    """Return a mark per located Single Image Finding; a cluster replaces the calcifications it comes from.

    A finding is for presentation if the root reaches it, by value or by reference, through no item that is
    Not for Presentation (PS3.4 O.2.2.1).
    """
    findings = [node for node in tree.root.descendants() if node.named(*_FINDING)]
    if len(findings) > MAX_FINDINGS:
        raise LesionError(f"the report has {len(findings)} single image findings; at most {MAX_FINDINGS} are read")
    shown = _reached(tree)
    parts_of = {finding: _parts(tree, finding) for finding in findings}
    # Two findings inferred from each other, which no writer should write, both stay.
    parts = {
        part for finding in shown.intersection(findings) for part in parts_of[finding] if finding not in parts_of[part]
    }
    marks = []
    for finding in findings:
        if finding in parts:
            continue
        if mark := _mark(tree, finding):
            marks.append(mark if finding in shown else replace(mark, left_out=_HIDDEN))
    return marks


def _reached(tree: ContentTree) -> set[ContentItem]:
    reached: set[ContentItem] = set()
    waiting = [tree.root]
    while waiting:
        node = tree.target(waiting.pop())
        if node not in reached and not _hidden(node):
            reached.add(node)
            waiting.extend(node.children)
    return reached


def _hidden(node: ContentItem) -> bool:
    intents = [child.value for child in node.children if child.named(*_RENDERING_INTENT)]
    return any(intent and (intent.value, intent.scheme) == _NOT_FOR_PRESENTATION for intent in intents)


def _parts(tree: ContentTree, finding: ContentItem) -> list[ContentItem]:
    """Return the findings that a finding was inferred from, at any depth, in order, without itself."""
    seen = {finding: None}
    waiting = [finding]
    while waiting:
        for child in waiting.pop().children:
            target = tree.target(child)
            if target.named(*_FINDING) and target not in seen:
                seen[target] = None
                waiting.append(target)
    return list(seen)[1:]


def _mark(tree: ContentTree, finding: ContentItem) -> Mark | None:
    shapes = _own(tree, finding, _OUTLINE)
    if not shapes:
        shapes = [shape for part in _parts(tree, finding) for shape in _place(tree, part)]
    if not shapes:
        shapes = _own(tree, finding, _CENTER)
    if not shapes:
        return None
    value = finding.value
    return Mark(
        where=f"single image finding at {finding.where}",
        description=replace(described(finding), finding=value, types=(value,) if value else (), categories=()),
        shapes=tuple(shapes),
        one_place=True,
    )


def _place(tree: ContentTree, finding: ContentItem) -> list[Shape]:
    return _own(tree, finding, _OUTLINE) or _own(tree, finding, _CENTER)


def _own(tree: ContentTree, finding: ContentItem, concept: tuple[str, str]) -> list[Shape]:
    return [
        shape_of(tree, child) for child in finding.children if child.value_type == "SCOORD" and child.named(*concept)
    ]
