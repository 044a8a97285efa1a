"""Walks a received data set (PS3.5 sections 7 and A) from first to last byte, without reading its values.

A data set that was cut, is not DICOM or names no SOP instance is refused here, before anything is stored.
Values are skipped by seeking: the cost grows with the number of elements, not of pixels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.datadict import DicomDictionary

from daemon.dicom.forward_reader import CutError, ForwardReader, InflatingReader, StoredReader
from daemon.dicom.status import CANNOT_UNDERSTAND, DATA_SET_DOES_NOT_MATCH_SOP_CLASS, INVALID_OBJECT_INSTANCE
from daemon.dicom.transfer_syntaxes import DEFLATED, EXPLICIT_VR_BIG_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from daemon.dicom.uids import is_valid_uid
from daemon.errors import RefusedInstance

MAX_DEPTH = 64  # sequences within sequences; content trees of real reports stay below 20
MAX_ELEMENTS = 500_000  # elements and items of all levels; each takes 300 to 600 bytes of memory when read
MAX_READ = 256 << 20  # bytes outside of the pixel data, all read into memory; a report has some megabytes
LARGE = 20_000  # elements, or kilobytes outside of the pixel data; large data sets are read one at a time

_SOP_CLASS_UID = 0x0008_0016
_SOP_INSTANCE_UID = 0x0008_0018
_STUDY_INSTANCE_UID = 0x0020_000D
_SERIES_INSTANCE_UID = 0x0020_000E
_WANTED = frozenset({_SOP_CLASS_UID, _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID})
_WANTED_LENGTH = 66  # bytes read of a wanted value: longer than any UID, so that a value too long is noticed

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_PIXEL_DATA = 0x7FE0_0010
_PIXELS = frozenset({_PIXEL_DATA, 0x7FE0_0008, 0x7FE0_0009})  # on the outermost level
_UNDEFINED = 0xFFFF_FFFF
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SEQUENCE_TAGS = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")
# Groups that no data set may hold (PS3.5 7.1, 7.8.1): command, file meta information, DICOMDIR, never used.
_FORBIDDEN_GROUPS = frozenset({0x0000, 0x0001, 0x0002, 0x0003, 0x0005, 0x0006, 0x0007, 0xFFFF})


@dataclass(frozen=True)
class DataSetFacts:
    """What a data set says it is.

    SOP Class and SOP Instance UID are valid by PS3.5 section 9. Study and Series Instance UID are as they
    stand in the data set, "" if it has none.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str = ""
    series_uid: str = ""
    is_large: bool = False  # reading it takes long, or much memory


def scan_data_set(file: BinaryIO, transfer_syntax_uid: str) -> DataSetFacts:
    """Walk the data set from the current position of `file` to the end of the file.

    Elements out of order and values of odd length pass, as in other software. Memory is bounded for any
    bytes.

    Raises:
        RefusedInstance: C000 the bytes are not a data set in this transfer syntax, end too early (the reason
            says at which byte), or have more elements, levels or bytes outside of the pixel data than may be
            read into memory; A900 the data set has no SOP Class UID or SOP Instance UID; 0117 one of the two
            is not a UID.
    """
    reader: ForwardReader = InflatingReader(file) if transfer_syntax_uid in DEFLATED else StoredReader(file)
    values, elements, read = _walk(reader, _form(transfer_syntax_uid))
    if isinstance(reader, InflatingReader):
        read = reader.position
    return DataSetFacts(
        sop_class_uid=_uid(values, _SOP_CLASS_UID, "SOP Class UID (0008,0016)"),
        sop_instance_uid=_uid(values, _SOP_INSTANCE_UID, "SOP Instance UID (0008,0018)"),
        study_uid=_text(values, _STUDY_INSTANCE_UID),
        series_uid=_text(values, _SERIES_INSTANCE_UID),
        is_large=elements + read // 1024 > LARGE,
    )


def _text(values: dict[int, bytes], tag: int) -> str:
    return values.get(tag, b"").rstrip(b"\0 ").decode("ascii", "replace")


def _uid(values: dict[int, bytes], tag: int, name: str) -> str:
    text = _text(values, tag)
    if not text:
        raise RefusedInstance(
            DATA_SET_DOES_NOT_MATCH_SOP_CLASS, f"the data set has no {name}; a composite object must have one"
        )
    if not is_valid_uid(text):
        raise RefusedInstance(INVALID_OBJECT_INSTANCE, f"the data set's {name} is not a UID by PS3.5 section 9")
    return text


@dataclass(frozen=True)
class _Form:
    """How elements are written."""

    explicit: bool
    order: str  # struct's byte order character


_IMPLICIT = _Form(explicit=False, order="<")
_EXPLICIT = _Form(explicit=True, order="<")
_EXPLICIT_BIG = _Form(explicit=True, order=">")


def _form(transfer_syntax_uid: str) -> _Form:
    if transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN:
        return _IMPLICIT
    return _EXPLICIT_BIG if transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN else _EXPLICIT


class _Level:
    """An open data set, item or sequence. `end` is None if a delimiter (or the last byte) closes it."""

    __slots__ = ("closer", "end", "form", "holds_elements", "is_pixels")

    def __init__(self, form: _Form, end: int | None, closer: int | None, is_pixels: bool = False) -> None:
        self.form = form
        self.end = end
        self.closer = closer  # the delimiter that may close it
        self.holds_elements = closer != _SEQUENCE_END
        self.is_pixels = is_pixels  # a sequence of fragments, not of items


def _walk(reader: ForwardReader, form: _Form) -> tuple[dict[int, bytes], int, int]:
    """Return the wanted outermost values, the count of elements and items, the bytes beside the pixels.

    It keeps a stack instead of recursing, so that depth cannot exhaust the interpreter's own.
    """
    levels = [_Level(form, None, None)]
    values: dict[int, bytes] = {}
    seen: set[int] = set()
    tag = outermost = elements = read = 0
    try:
        while True:
            level = levels[-1]
            if level.end is not None and reader.position >= level.end:
                if reader.position > level.end:
                    raise _not_a_data_set(reader.position, tag, "an element runs over the end of its item or sequence")
                levels.pop()
                continue
            if len(levels) == 1 and reader.at_end():
                if not seen:
                    raise CutError(0)
                return values, elements, read
            at = reader.position
            tag, vr, length = _element(reader, level)
            elements += 1
            if elements > MAX_ELEMENTS:
                raise RefusedInstance(
                    CANNOT_UNDERSTAND, f"the data set has more than {MAX_ELEMENTS} elements and items"
                )
            if tag == level.closer and level.end is None:
                levels.pop()
            elif not level.holds_elements:
                _open_item(reader, levels, at, tag, length)
            elif tag >> 16 in _FORBIDDEN_GROUPS or tag >> 16 == 0xFFFE:
                raise _not_a_data_set(at, tag, "no data set may hold this tag here")
            else:
                if len(levels) == 1:
                    outermost = tag
                    if tag in seen:
                        raise _not_a_data_set(at, tag, "the element comes twice")
                    seen.add(tag)
                if length == _UNDEFINED or vr == b"SQ" or (vr is None and tag in _SEQUENCE_TAGS):
                    _open_sequence(reader, levels, at, tag, vr, length)
                elif len(levels) == 1 and tag in _WANTED:
                    values[tag] = reader.read(min(length, _WANTED_LENGTH))
                    reader.skip(length - len(values[tag]))
                else:
                    reader.skip(length)
            if not (outermost in _PIXELS and (len(levels) > 1 or tag == outermost)):
                read += reader.position - at
                if read > MAX_READ:
                    raise RefusedInstance(
                        CANNOT_UNDERSTAND, f"the data set has more than {MAX_READ} bytes beside its pixels"
                    )
    except CutError as error:
        raise RefusedInstance(
            CANNOT_UNDERSTAND,
            f"the data set ends at byte {error}, in or after {_name(outermost)}; it was cut, send it whole",
        ) from None


def _element(reader: ForwardReader, level: _Level) -> tuple[int, bytes | None, int]:
    """Read tag, VR (None if not written) and length of what comes next (PS3.5 7.1, 7.5)."""
    at = reader.position
    header = reader.read(8)
    order = level.form.order
    group, element, length = struct.unpack(order + "HHI", header)
    tag = group << 16 | element
    if group == 0xFFFE or not level.form.explicit or not level.holds_elements:
        return tag, None, length
    vr = header[4:6]
    if vr in _LONG_VRS:
        (length,) = struct.unpack(order + "I", reader.read(4))
    elif vr in _SHORT_VRS:
        (length,) = struct.unpack(order + "H", header[6:])
    else:
        raise _not_a_data_set(at, tag, "its value representation does not exist")
    return tag, vr, length


def _open_item(reader: ForwardReader, levels: list[_Level], at: int, tag: int, length: int) -> None:
    level = levels[-1]
    if tag != _ITEM:
        raise _not_a_data_set(at, tag, "an item was expected")
    if level.is_pixels:
        if length == _UNDEFINED:
            raise _not_a_data_set(at, tag, "a fragment of pixel data must have a length")
        reader.skip(length)
    else:
        levels.append(_Level(level.form, None if length == _UNDEFINED else reader.position + length, _ITEM_END))


def _open_sequence(
    reader: ForwardReader, levels: list[_Level], at: int, tag: int, vr: bytes | None, length: int
) -> None:
    is_pixels = tag == _PIXEL_DATA and vr in (b"OB", b"OW", b"UN")
    if not is_pixels and vr not in (b"SQ", b"UN", None):
        raise _not_a_data_set(at, tag, f"a value of {vr.decode()} must have a length")
    if len(levels) > 2 * MAX_DEPTH:  # a sequence and its item are a level each
        raise _not_a_data_set(at, tag, f"sequences are nested more than {MAX_DEPTH} deep")
    # The content of UN with undefined length is always Implicit VR Little Endian (PS3.5 6.2.2, CP-246).
    form = _IMPLICIT if vr == b"UN" and not is_pixels else levels[-1].form
    end = None if length == _UNDEFINED else reader.position + length
    levels.append(_Level(form, end, _SEQUENCE_END, is_pixels))


def _not_a_data_set(at: int, tag: int, why: str) -> RefusedInstance:
    return RefusedInstance(
        CANNOT_UNDERSTAND, f"the bytes are not a data set in this transfer syntax: {_name(tag)} at byte {at}: {why}"
    )


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
