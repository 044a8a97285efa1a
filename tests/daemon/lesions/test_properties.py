"""Properties over content trees: no lesion without a mark, no outline point that the mark does not have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from config.settings import Lesions
from daemon.lesions.reader import lesion_references, read_lesions
from tests.support.lesion_objects import MASS, code_item, container, image_item, item, mammogram, report_by_hand, scoord
from tests.support.viewer_objects import REFERENCE_POINTS, SHORT_LABEL, cornerstone_group, dwv_group, num

IMAGE = mammogram(200, 160, sop_instance_uid="1.2.3")
ANY_SIZE = Lesions(max_image_fraction=1, max_extent_mm=10_000, max_outside_fraction=1, min_area_px=0)
GROUP = Code("125007", "DCM", "Measurement Group")
POINT = st.tuples(st.integers(5, 150), st.integers(5, 190))
PLACES = st.sampled_from(
    [
        Code("TextPosition", "99CS3D", "Text Annotation Position"),
        Code("TextAnnotationPosition", "99CS3D", "Text Annotation Position"),
        Code("ControlPoints", "99CS3D", "Control Points"),
        REFERENCE_POINTS,
    ]
)


@st.composite
def beside_marks(draw: st.DrawFn) -> Dataset:
    """A content item of a group in which no mark of a lesion was made."""
    kind = draw(st.sampled_from(["place", "label", "number", "image", "finding"]))
    point = draw(POINT)
    if kind == "place":
        shape = draw(st.sampled_from(["POINT", "MULTIPOINT"]))
        return scoord(shape, [point], [image_item(IMAGE)], name=draw(PLACES))
    if kind == "label":
        place = scoord("POINT", [point], [image_item(IMAGE)], name=draw(st.sampled_from([None, REFERENCE_POINTS])))
        return item("TEXT", SHORT_LABEL, "HAS CONCEPT MOD", [place], TextValue=draw(st.sampled_from(["mass", "L1"])))
    if kind == "number":
        return num("Area", "mm2")
    return (
        image_item(IMAGE, relationship="CONTAINS")
        if kind == "image"
        else code_item(Code("121071", "DCM", "Finding"), MASS)
    )


@st.composite
def trees(draw: st.DrawFn, content: st.SearchStrategy[Sequence[Dataset]]) -> Dataset:
    """A report of some groups, some of them in containers."""
    groups = [container(GROUP, draw(content)) for _ in range(draw(st.integers(1, 3)))]
    wrapped = [container(Code("126010", "DCM", "Imaging Measurements"), groups)] if draw(st.booleans()) else groups
    return report_by_hand([IMAGE], wrapped)


TOOLS_WITHOUT_LESION = st.builds(
    lambda tool, corners: cornerstone_group(IMAGE, tool, corners),
    st.sampled_from(["Angle", "CobbAngle", "Cornerstone3DTools@^0.1.0:Probe:KeyImage"]),
    st.lists(POINT, min_size=4, max_size=4, unique=True),
)


@settings(max_examples=40, deadline=None)
@given(trees(st.one_of(st.lists(beside_marks(), max_size=4), TOOLS_WITHOUT_LESION)))
def test_no_lesion_comes_from_an_object_in_which_no_lesion_was_marked(report: Dataset) -> None:
    if lesion_references(report) is not None:
        assert read_lesions(report, {"1.2.3": IMAGE}, {}, ANY_SIZE).lesions == ()


@st.composite
def marked(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[Dataset]]:
    """The corners of a mark, and a group that draws it with other things beside it."""
    corners = draw(st.lists(POINT, min_size=4, max_size=8, unique=True))
    closed = [*corners, corners[0]]
    viewer = draw(st.sampled_from(["RectangleROI", "Length", "Bidirectional", "dwv"]))
    group = dwv_group(IMAGE, "POLYLINE", closed) if viewer == "dwv" else cornerstone_group(IMAGE, viewer, closed)
    return corners, [*group, *draw(st.lists(beside_marks(), max_size=3))]


@settings(max_examples=40, deadline=None)
@given(st.lists(marked(), min_size=1, max_size=3))
def test_an_outline_has_no_point_that_the_mark_does_not_have(
    drawn: list[tuple[list[tuple[int, int]], list[Dataset]]],
) -> None:
    report = report_by_hand([IMAGE], [container(GROUP, group) for _, group in drawn])
    lesions = read_lesions(report, {"1.2.3": IMAGE}, {}, ANY_SIZE).lesions
    assert lesions
    all_corners = [set(corners) for corners, _ in drawn]
    for lesion in lesions:
        outline = {tuple(point) for point in np.asarray(lesion.outline).tolist()}
        assert any(outline <= corners for corners in all_corners)
