"""The picture of a case: each view with outlines, and each lesion as the network saw it, with its heat map.

It is drawn with Pillow and its own font, so the same case gives the same pixels on every machine. Nothing
that names a patient is drawn: lesions are numbered as in the report, and views are named from codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from config import __version__
from daemon.errors import ReportError
from daemon.lesions.geometry import is_closed
from daemon.reports import image_header
from daemon.reports.base_object import shown_images
from daemon.reports.case import Algorithm, Case, Result
from daemon.reports.display_image import View
from daemon.reports.statements import RESEARCH_USE_SHORT, UNTRAINED_SHORT, in_full, short_result

HEAT_MAP = (
    "Heat map: Grad-CAM. Warm is where the picture raises the score for malignancy, scaled to the map's own maximum. It "
    "shows what the score is sensitive to, in coarse cells; it is no outline of the lesion and no explanation of it."
)

Colour = tuple[int, int, int]
_GROUND: Colour = (16, 20, 24)
_INK: Colour = (232, 234, 237)
_SOFT: Colour = (154, 164, 174)
_AMBER: Colour = (255, 200, 87)
_RED: Colour = (176, 32, 36)
# Told apart by people of any colour vision, and by grey value; the words say it too.
_MALIGNANT: Colour = (255, 150, 50)
_BENIGN: Colour = (90, 200, 250)
_RAMP = np.array([(60, 10, 90), (150, 30, 100), (225, 70, 60), (250, 150, 30), (255, 245, 150)], np.float32)

_GAP = 16
_SIDES = (440, 299, 250, 200, 150, 120)  # of a crop; the first at which all lesions fit is taken
_PANELS_WIDTH = 1100
_MIN_HEIGHT = 760
_TITLE, _NOTE = 34, 44  # height above and below the two crops of a lesion
_HEAT_OPACITY = 0.75
_PRINT_WIDTH = 0.7  # of the picture, in its middle: viewers write into the four corners
_MAX_LONG_LABELS = 12  # with more lesions only numbers stand in the view: long labels would land far away


@dataclass(frozen=True, eq=False)
class Picture:
    """RGB uint8 (height, width, 3) of one frame of one image."""

    image: Dataset
    frame: int
    pixels: np.ndarray


def pictures(case: Case) -> list[Picture]:
    """Return one picture for each frame with a lesion, in the order of the report, made from `case.views`.

    Raises:
        ReportError: see `base_object.shown_images`; a frame without view.
    """
    shown = shown_images(case)
    numbered: dict[tuple[str, int], list[tuple[int, Result]]] = {}
    for number, result in enumerate(case.results, start=1):
        numbered.setdefault((result.lesion.image_uid, result.lesion.frame), []).append((number, result))
    made = []
    for (uid, frame), results in numbered.items():
        view = case.views.get((uid, frame))
        if view is None:
            raise ReportError(f"frame {frame} of image {uid} cannot be shown for people, so there is no picture of it")
        pixels = _draw(view, results, case.algorithm, _caption(shown[uid], frame))
        made.append(Picture(shown[uid], frame, pixels))
    return made


def _caption(image: Dataset, frame: int) -> str:
    side = image_header.laterality(image)
    words = [side.meaning.lower() if side else "", image_header.view_position(image) or ""]
    if (frames := image_header.frames(image)) > 1:
        words.append(f"frame {frame} of {frames}")
    return " ".join(filter(None, words))


def _draw(view: View, numbered: Sequence[tuple[int, Result]], algorithm: Algorithm, caption: str) -> np.ndarray:
    picture = _with_outlines(view, numbered, algorithm)
    side, rows, columns = _grid(len(numbered), max(picture.height, _MIN_HEIGHT))
    drawn = numbered[: rows * columns]
    columns = math.ceil(len(drawn) / rows)
    width = picture.width + columns * (2 * side + 2 * _GAP) + 2 * _GAP
    heads = [(RESEARCH_USE_SHORT, _AMBER, _GROUND)] + ([] if algorithm.trained else [(UNTRAINED_SHORT, _INK, _RED)])
    lines = _wrapped(_small_print(algorithm, len(numbered) - len(drawn)), round(_PRINT_WIDTH * width))
    top = _GAP + 40 * len(heads) + 30
    bottom = top + max(picture.height, min(rows, len(drawn)) * (side + _TITLE + _NOTE)) + _GAP
    canvas = Image.new("RGB", (width, bottom + 24 * len(lines) + _GAP), _GROUND)
    draw = ImageDraw.Draw(canvas)
    for line, (words, ink, ground) in enumerate(heads):
        y = _GAP // 2 + 40 * line
        draw.rectangle((0, y, width, y + 36), fill=ground)
        draw.text((width / 2, y + 4), words, ink, _font(24), anchor="ma")
    draw.text((_GAP + picture.width, top - 28), caption, _INK, _font(18), anchor="ra")
    canvas.paste(picture, (_GAP, top))
    for index, (number, result) in enumerate(drawn):
        column, row = divmod(index, rows)
        left = picture.width + 2 * _GAP + column * (2 * side + 2 * _GAP)
        _panel(canvas, left, top + row * (side + _TITLE + _NOTE), side, number, result, algorithm)
    for line, words in enumerate(lines):
        draw.text((width / 2, bottom + 24 * line), words, _SOFT, _font(16), anchor="ma")
    return np.asarray(canvas)


def _grid(count: int, height: int) -> tuple[int, int, int]:
    """Return side of a crop, rows and columns of panels for `count` lesions, or for as many as fit."""
    for side in _SIDES:
        rows = max(1, height // (side + _TITLE + _NOTE))
        columns = max(1, _PANELS_WIDTH // (2 * side + 2 * _GAP))
        if rows * columns >= count:
            break
    return side, rows, columns


def _small_print(algorithm: Algorithm, left_over: int) -> list[str]:
    lines = [f"{left_over} more lesions have no room here; the structured report has them."] if left_over else []
    return [
        *lines,
        f"Model {algorithm.name} {algorithm.version}; a lesion is called malignant from a probability of "
        f"{in_full(algorithm.threshold)} on. Made by mammod {__version__}, not verified by any person.",
        HEAT_MAP,
    ]


def _panel(
    canvas: Image.Image, left: int, top: int, side: int, number: int, result: Result, algorithm: Algorithm
) -> None:
    """Draw one lesion: its result, what the network saw, and the heat map over it."""
    draw = ImageDraw.Draw(canvas)
    words = f"{number}  {short_result(result.prediction, algorithm)}"
    draw.text((left, top), words, _colour(result), _font(24 if side > 150 else 20))
    seen = Image.fromarray(np.rint(result.roi.pixels * 255).astype(np.uint8))
    seen = seen.resize((side, side), Image.Resampling.BOX if side < seen.width else Image.Resampling.BICUBIC)
    canvas.paste(seen.convert("RGB"), (left, top + _TITLE))
    beside, below = left + side + _GAP // 2, top + _TITLE + side + 3
    canvas.paste(_heated(seen, result), (beside, top + _TITLE))
    small = _font(14)
    draw.text((left, below), "as the network saw it" if side >= 150 else "as seen", _SOFT, small)
    heat = result.prediction.heat_map
    if heat is not None and heat.max() > 0:
        words = "heat map, low to high" if side >= 250 else "heat map"
        scale = Image.fromarray(_ramp(np.linspace(0, 1, side // 3)[None].repeat(10, axis=0)).astype(np.uint8))
        canvas.paste(scale, (beside + side - scale.width, below + 4))
    else:
        words = "no heat map" if heat is None else "nothing warm"
    draw.text((beside, below), words, _SOFT, small)
    notes = []
    if result.roi.padded >= 0.005:
        notes.append(f"{100 * result.roi.padded:.0f} % outside the image")
    if result.roi.spacing_assumed:
        notes.append("pixel spacing ASSUMED")
    draw.text((left, below + 18), ", ".join(notes), _AMBER, small)


def _heated(seen: Image.Image, result: Result) -> Image.Image:
    """Return the crop with its heat map and its outline, which the network did not see."""
    grey = np.asarray(seen, np.float32)[..., None].repeat(3, axis=2)
    heat = result.prediction.heat_map
    if heat is not None and heat.max() > 0:
        cells = Image.fromarray((heat / heat.max()).astype(np.float32))
        share = np.clip(np.asarray(cells.resize(seen.size, Image.Resampling.BILINEAR)), 0, 1)
        opacity = (_HEAT_OPACITY * share)[..., None]
        grey = grey * (1 - opacity) + _ramp(share) * opacity
    box = result.roi.box
    scale = np.array([seen.width / (box.right - box.left), seen.height / (box.bottom - box.top)])
    points = (result.lesion.outline - [box.left, box.top]) * scale
    return _outlined(Image.fromarray(np.rint(grey).astype(np.uint8)), [(points, _is_open(result), _INK)], 1)


def _ramp(share: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) float32 for shares of 0 to 1."""
    place = share * (len(_RAMP) - 1)
    low = np.minimum(place.astype(int), len(_RAMP) - 2)
    part = (place - low)[..., None]
    return _RAMP[low] * (1 - part) + _RAMP[low + 1] * part


def _with_outlines(view: View, numbered: Sequence[tuple[int, Result]], algorithm: Algorithm) -> Image.Image:
    """Return the view with every outline, each with its number and result beside it."""
    lines = [(result.lesion.outline * view.scale, _is_open(result), _colour(result)) for _, result in numbered]
    picture = _outlined(Image.fromarray(view.grey).convert("RGB"), lines, 3)
    draw = ImageDraw.Draw(picture)
    taken: list[Place] = [_bounds(points) for points, _, _ in lines]
    crowded = len(numbered) > _MAX_LONG_LABELS
    font = _font(15 if crowded else 20)
    for (number, result), (points, _, colour) in zip(numbered, lines, strict=True):
        words = f"{number} {short_result(result.prediction, algorithm)}"
        if crowded or font.getlength(words) + 10 > picture.width:
            words = str(number)
        place = _free_place(view.grey, _bounds(points), font.getlength(words) + 10, font.size + 8, taken)
        taken.append(place)
        draw.rectangle(place, fill=(0, 0, 0))
        draw.text((place[0] + 5, place[1] + 2), words, colour, font)
    return picture


Place = tuple[float, float, float, float]
"""Left, top, right, bottom in picture pixels."""


def _bounds(points: np.ndarray) -> Place:
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def _free_place(grey: np.ndarray, lesion: Place, width: float, height: float, taken: Sequence[Place]) -> Place:
    """Return a place for a label near its lesion, over no outline, no label and as little tissue as possible.

    That is beside, above or below the lesion, else further up or down, else over other labels.
    """
    rows, columns = grey.shape
    left, top, right, bottom = lesion
    middle, gap = (top + bottom - height) / 2, 8.0
    near = [(right + gap, middle), (left - gap - width, middle), (left, top - gap - height), (left, bottom + gap)]
    steps = [sign * step * (height + 2) for step in range(1, 40) for sign in (1, -1)]
    far = [(x, middle + step) for step in steps for x in (right + gap, left - gap - width)]

    def free(corners: Sequence[tuple[float, float]]) -> list[Place]:
        places = [(x, y, x + width, y + height) for x, y in corners]
        inside = [p for p in places if p[0] >= 0 and p[1] >= 0 and p[2] <= columns and p[3] <= rows]
        return [place for place in inside if not any(_overlap(place, other) for other in taken)]

    if choice := free(near):
        return min(choice, key=lambda p: float(grey[int(p[1]) : int(p[3]), int(p[0]) : int(p[2])].mean()))
    if choice := free(far):
        return choice[0]
    x, y = min(max(right + gap, 0), max(columns - width, 0)), min(max(middle, 0), max(rows - height, 0))
    return x, y, x + width, y + height


def _overlap(one: Place, other: Place) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


Line = tuple[np.ndarray, bool, Colour]
"""Points (N, 2) of (column, row) in picture pixels, whether the line stays open, and its colour."""


def _outlined(picture: Image.Image, lines: Sequence[Line], width: int) -> Image.Image:
    """Return `picture` with lines over it, each with a dark seam, drawn twice as large and reduced."""
    large = Image.new("RGBA", (2 * picture.width, 2 * picture.height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(large)
    for points, is_open, colour in lines:
        corners = [(2 * x, 2 * y) for x, y in points.tolist()]
        if len(corners) == 1:
            ((x, y),) = corners
            for radius, ink, line in ((18, (0, 0, 0, 200), 2 * width + 4), (18, (*colour, 255), 2 * width)):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ink, width=line)
            continue
        corners += [] if is_open or len(corners) == 2 else corners[:2]
        draw.line(corners, (0, 0, 0, 200), 2 * width + 4, joint="curve")
        draw.line(corners, (*colour, 255), 2 * width, joint="curve")
    over = large.resize(picture.size, Image.Resampling.BOX)
    return Image.alpha_composite(picture.convert("RGBA"), over).convert("RGB")


def _is_open(result: Result) -> bool:
    region = result.lesion.region
    return region.graphic_type == "POLYLINE" and not is_closed(region)


def _colour(result: Result) -> Colour:
    return _MALIGNANT if result.prediction.malignant else _BENIGN


def _wrapped(sentences: Sequence[str], width: int) -> list[str]:
    """Return sentences in lines of at most `width` pixels of the small print."""
    lines = []
    for sentence in sentences:
        line = ""
        for word in sentence.split():
            longer = f"{line} {word}".strip()
            if line and _font(16).getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
