"""Viewers' tool output besides marks: measuring tools, arrows, label positions, control points."""

from __future__ import annotations

from collections.abc import Iterable

from config.settings import Lesions
from daemon.lesions.anatomy import says_lesion, word_in
from daemon.lesions.references import code_of, items, listed_code
from daemon.lesions.sr_tree import LABELS, ContentItem, Description

# Tools of Cornerstone (OHIF), named in the tracking identifier: "Cornerstone3DTools@^0.1.0:Probe:KeyImage".
_CORNERSTONE = "cornerstone"
_ARROW = "ArrowAnnotate"
_NO_LESION_TOOLS = {
    "KeyImage": "marks an image",
    "Angle": "measures an angle",
    "CobbAngle": "measures an angle",
    "UltrasoundDirectional": "measures ultrasound",
    "UltrasoundDirectionalTool": "measures ultrasound",
    "UltrasoundPleuraBLineTool": "measures ultrasound",
    "CalibrationLine": "calibrates an image",
}
# SCOORDs that are no part of the mark: dragged labels and spline control points (Cornerstone), labels and
# arrow tails (dwv).
_BESIDE_THE_MARK = {
    ("TextPosition", "99CS3D"),
    ("TextAnnotationPosition", "99CS3D"),
    ("ControlPoints", "99CS3D"),
    ("122438", "DCM"),  # Reference Points
}
_LABEL_PLACES = ("text position", "text annotation position", "label position", "control points", "reference points")
_DISTANCE_WORDS = ("distance", "abstand", "distanz", "distancia", "distanza", "afstand", "entfernung", "距离", "距離")


def draws_the_mark(scoord: ContentItem) -> bool:
    """Return whether a SCOORD is geometry of the mark itself, not its label's position."""
    name = scoord.name
    if name and ((name.value, name.scheme) in _BESIDE_THE_MARK or word_in(name.meaning, _LABEL_PLACES)):
        return False
    holder = scoord.parent
    return not (holder and holder.value_type == "TEXT" and any(holder.named(*label) for label in LABELS))


def tools_of(tracking_id: str | None) -> list[str]:
    """Return the names of Cornerstone's tools in a tracking identifier, most general first."""
    if not tracking_id or not tracking_id.casefold().startswith(_CORNERSTONE):
        return []
    return tracking_id.split(":")[1:]


def is_arrow(tracking_id: str | None) -> bool:
    """Return whether the mark is an arrow, which is written tip first."""
    return _ARROW in tools_of(tracking_id)


def why_no_lesion_tool(
    description: Description, below: Iterable[ContentItem], is_line: bool, settings: Lesions
) -> str | None:
    """Return why a mark is a measurement and no lesion, None if it may be one.

    `below` are the mark's content items; `is_line`: the whole drawing is one straight line.
    """
    for tool in tools_of(description.tracking_id):
        if tool in _NO_LESION_TOOLS:
            return f"its tracking identifier names the tool {tool}, which {_NO_LESION_TOOLS[tool]} and marks no lesion"
    measured = [node for node in below if node.value_type == "NUM"]
    if measured and all(_unit(node) == "deg" for node in measured):
        return "it measures an angle and marks no lesion"
    if not is_line or listed_code(description.types, settings.lesion_codes):
        return None
    for text in description.texts:
        if word := word_in(text, settings.not_lesion_words) or word_in(text, _DISTANCE_WORDS):
            return f"its label holds the word {word!r}: it measures a distance and no lesion"
    names = [node.name.meaning for node in measured if node.name]
    if any(word_in(name, _DISTANCE_WORDS) for name in names) and not says_lesion(description.texts, settings):
        return "it measures a distance and no lesion"
    return None


def _unit(measured: ContentItem) -> str:
    for value in items(measured.item, "MeasuredValueSequence"):
        if unit := code_of(value, "MeasurementUnitsCodeSequence"):
            return unit.value
    return ""
