"""What a report takes from an image header: patient and study unchanged, and facts for the image library.

Ordinary mammograms lack attributes or hold odd values; each function here returns None if the header does not
say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import HTJ2K, JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from daemon.lesions.lesion import Code

# Of the patient and study modules (PS3.3 C.7.1.1, C.7.2.1), and what is needed to read them.
_PATIENT_AND_STUDY = (
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "IssuerOfAccessionNumberSequence",
    "StudyDescription",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)

LEFT = Code("7771000", "SCT", "Left")
RIGHT = Code("24028007", "SCT", "Right")
BOTH = Code("51440002", "SCT", "Right and left")
_LATERALITIES = {"L": LEFT, "R": RIGHT, "B": BOTH}

# The modalities of projection radiography in CID 29.
_MODALITIES = {
    "MG": Code("MG", "DCM", "Mammography"),
    "CR": Code("CR", "DCM", "Computed Radiography"),
    "DX": Code("DX", "DCM", "Digital Radiography"),
    "RG": Code("RG", "DCM", "Radiographic imaging"),
}

# View Position (PS3.3 C.8.11.7) as codes of CID 4014.
_VIEWS = {
    "CC": Code("399162004", "SCT", "cranio-caudal"),
    "MLO": Code("399368009", "SCT", "medio-lateral oblique"),
    "ML": Code("399260004", "SCT", "medio-lateral"),
    "LM": Code("399352003", "SCT", "latero-medial"),
    "LMO": Code("399099002", "SCT", "latero-medial oblique"),
    "FB": Code("399196006", "SCT", "caudo-cranial (from below)"),
    "SIO": Code("399188001", "SCT", "superolateral to inferomedial oblique"),
    "ISO": Code("441555000", "SCT", "inferomedial to superolateral oblique"),
    "XCCL": Code("399192008", "SCT", "cranio-caudal exaggerated laterally"),
    "XCCM": Code("399101009", "SCT", "cranio-caudal exaggerated medially"),
}


# Transfer syntaxes that are always lossy, and those that may be (PS3.5 section 8.2, annex A.4).
_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
_MAY_BE_LOSSY = (JPEG2000, HTJ2K)


def patient_and_study(image: Dataset) -> Dataset:
    """Return the patient and study attributes of `image`, byte for byte if they were not decoded yet."""
    copy = Dataset()
    for keyword in _PATIENT_AND_STUDY:
        tag = Tag(keyword)
        if tag in image:
            copy[tag] = _element(image, tag)
    return copy


def _element(image: Dataset, tag: BaseTag) -> DataElement | RawDataElement:
    element = image.get_item(tag)
    vr = dictionary_VR(tag)
    if not isinstance(element, RawDataElement) or vr == "SQ":
        return deepcopy(image[tag])
    value = element.value or b""
    value += b" " * (len(value) % 2)
    return element._replace(VR=vr, value=value, length=len(value))


def patient_key(image: Dataset) -> tuple[str, str]:
    """Return Patient ID and issuer without insignificant spaces, to compare patients; never show them."""
    copy = patient_and_study(image)
    return str(copy.get("PatientID") or "").strip(), str(copy.get("IssuerOfPatientID") or "").strip()


def laterality(image: Dataset) -> Code | None:
    """Return left, right or both: from Image Laterality, else Laterality, else the frame anatomy."""
    frame_anatomy = _first(_first(image, "SharedFunctionalGroupsSequence"), "FrameAnatomySequence")
    for header, keyword in ((image, "ImageLaterality"), (image, "Laterality"), (frame_anatomy, "FrameLaterality")):
        code = _LATERALITIES.get(_single(header, keyword))
        if code is not None:
            return code
    return None


def shows_breast(image: Dataset) -> bool:
    """Return whether the header says that the image is of a breast."""
    return _single(image, "Modality") == "MG" or _single(image, "BodyPartExamined") == "BREAST"


def view(image: Dataset) -> Code | None:
    """Return the view (CID 4014), from the View Code Sequence, else from View Position.

    Digitised films of CBIS-DDSM hold it as the only value of Patient Orientation, which cannot be an
    orientation.
    """
    code = coded(_first(image, "ViewCodeSequence"))
    return code or _VIEWS.get(_single(image, "ViewPosition")) or _VIEWS.get(_single(image, "PatientOrientation"))


def view_position(image: Dataset) -> str | None:
    """Return the view's abbreviation, such as MLO, from this module's own table and never from free text."""
    code = view(image)
    coded_as = next((name for name, known in _VIEWS.items() if code and known.value == code.value), None)
    named = (_single(image, keyword) for keyword in ("ViewPosition", "PatientOrientation"))
    return coded_as or next((name for name in named if name in _VIEWS), None)


def view_modifiers(image: Dataset) -> list[Code]:
    """Return the view modifiers (CID 4015) of the View Code Sequence."""
    codes = (coded(item) for item in _items(_first(image, "ViewCodeSequence"), "ViewModifierCodeSequence"))
    return [code for code in codes if code is not None]


def orientation(image: Dataset) -> tuple[str, str] | None:
    """Return Patient Orientation (row direction, column direction) if the header gives both."""
    value = _value(image, "PatientOrientation")
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        return None
    row, column = str(value[0]).strip(), str(value[1]).strip()
    return (row, column) if row and column else None


def pixel_spacing(image: Dataset) -> tuple[float, float] | None:
    """Return millimetres between rows and between columns as the header gives them, for whichever plane."""
    shared = _first(_first(image, "SharedFunctionalGroupsSequence"), "PixelMeasuresSequence")
    for header, keyword in (
        (image, "PixelSpacing"),
        (shared, "PixelSpacing"),
        (image, "ImagerPixelSpacing"),
        (image, "NominalScannedPixelSpacing"),
    ):
        value = _value(header, keyword)
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
            continue
        vertical, horizontal = (_number(part) for part in value)
        if vertical and horizontal:
            return vertical, horizontal
    return None


def day(image: Dataset, keyword: str) -> str | None:
    """Return a date (YYYYMMDD) of the header, or None if it is no valid date."""
    value = str(_value(image, keyword) or "").strip()
    return value if re.fullmatch("[0-9]{8}", value) else None


def moment(image: Dataset, keyword: str) -> str | None:
    """Return a time of day (HHMMSS, with a fraction if given) of the header, or None if it is not valid."""
    value = str(_value(image, keyword) or "").strip()
    return value if re.fullmatch(r"[0-9]{6}(\.[0-9]{1,6})?", value) else None


def size(image: Dataset) -> tuple[int, int] | None:
    """Return rows and columns."""
    rows, columns = _value(image, "Rows"), _value(image, "Columns")
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None


def frames(image: Dataset) -> int:
    """Return the number of frames; 1 if the header does not say."""
    return int(_number(_value(image, "NumberOfFrames")) or 1)


def is_lossy(image: Dataset) -> bool:
    """Return whether the pixels were compressed with loss, by attribute or transfer syntax."""
    declared = _single(image, "LossyImageCompression")
    syntax = getattr(getattr(image, "file_meta", None), "TransferSyntaxUID", None)
    return declared == "01" or syntax in _LOSSY or (syntax in _MAY_BE_LOSSY and declared != "00")


def compression_ratios(image: Dataset) -> list[str]:
    """Return Lossy Image Compression Ratio as written, one per compression; nothing if one is not valid."""
    ratios = [str(ratio).strip() for ratio in _values(image, "LossyImageCompressionRatio")]
    return ratios if all(map(_number, ratios)) else []


def compression_methods(image: Dataset) -> list[str]:
    """Return Lossy Image Compression Method, one per compression; nothing if one is no code string."""
    methods = [str(method).strip() for method in _values(image, "LossyImageCompressionMethod")]
    return methods if all(re.fullmatch("[A-Z0-9_ ]{1,16}", method) for method in methods) else []


def modality(image: Dataset) -> Code | None:
    """Return the modality if it is one of projection radiography."""
    return _MODALITIES.get(_single(image, "Modality"))


def procedures(image: Dataset) -> list[Code]:
    """Return the codes of the imaging procedure (Procedure Code Sequence)."""
    codes = (coded(item) for item in _items(image, "ProcedureCodeSequence"))
    return [code for code in codes if code is not None]


def coded(item: Dataset | None) -> Code | None:
    """Return a code sequence item as a code, or None if value, scheme or meaning is missing."""
    value = next((v for k in ("CodeValue", "LongCodeValue", "URNCodeValue") if (v := _value(item, k))), None)
    scheme, meaning = _value(item, "CodingSchemeDesignator"), _value(item, "CodeMeaning")
    return Code(str(value), str(scheme), str(meaning)) if value and scheme and meaning else None


def _value(header: Dataset | None, keyword: str) -> Any:
    try:
        return None if header is None else header.get(keyword)
    except Exception:  # pydicom raises many kinds; an optional attribute that cannot be read says nothing
        return None


def _items(header: Dataset | None, keyword: str) -> list[Dataset]:
    return list(_value(header, keyword) or [])


def _values(header: Dataset | None, keyword: str) -> list[Any]:
    """Return the values of an element that may have one or several."""
    value = _value(header, keyword)
    return [] if value is None else list(value) if isinstance(value, MultiValue) else [value]


def _first(header: Dataset | None, keyword: str) -> Dataset | None:
    return next(iter(_items(header, keyword)), None)


def _single(header: Dataset | None, keyword: str) -> str:
    value = _value(header, keyword)
    return value.strip().upper() if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    """Return a finite number above zero, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
