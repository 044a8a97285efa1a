"""The default list of codes that are not lesions, compared with pydicom's dictionary of codes."""

from __future__ import annotations

from pydicom.sr.codedict import codes

from config.lesion_terms import NOT_LESION_CODES

SCT, DCM = codes.SCT, codes.DCM
# CID 7163 Breast Segmentation Types (2024), newer than pydicom's dictionary
BREAST_SEGMENTATION_TYPES = {
    f"SCT:{value}" for value in ("1342375003", "279009002", "89749009", "58549005", "314375000", "68192009", "82038008")
}


def test_every_code_is_the_concept_it_is_meant_to_be() -> None:
    concepts = [
        *(SCT.AnatomicalStructure, SCT.PhysicalObject, SCT.Breast, SCT.EntireBreast, SCT.AdiposeTissue, SCT.Skin),
        *(SCT.Nipple, SCT.PectoralisMajorMuscle, SCT.PectoralisMinorMuscle, SCT.MuscleTissue, SCT.Lung, SCT.Implant),
        *(SCT.BreastImplantTypeNotSpecified, SCT.Prosthesis, SCT.Clip, SCT.OpaqueMarker, SCT.BreastComposition),
        *(DCM.BreastOutlineIncludingPectoralMuscleTissue, DCM.PectoralMuscleOutline, DCM.SelectedRegion),
        *(DCM.BreastGeometry, DCM.ImageQuality, DCM.NonLesion, DCM.Background),
    ]
    known = {f"{concept.scheme_designator}:{concept.value}" for concept in concepts}
    # The category of SNOMED's hierarchy that dcmqi and highdicom write, and NCI's fibroglandular tissue.
    known |= {"SCT:123037004", "NCIT:C114467"}
    assert known | BREAST_SEGMENTATION_TYPES == set(NOT_LESION_CODES)


def test_no_lesion_is_on_the_list() -> None:
    lesions = [
        *(SCT.Mass, SCT.Lesion, SCT.Nodule, SCT.Neoplasm, SCT.MorphologicallyAbnormalStructure, SCT.Cyst),
        *(SCT.MammographicBreastMass, SCT.CalcificationCluster, SCT.IndividualCalcification),
        # CAD's code for a mass seen in one view only (CID 6014), and viewers' default code
        *(SCT.MammographyBreastDensity, SCT.Tissue),
    ]
    assert not {f"SCT:{concept.value}" for concept in lesions} & set(NOT_LESION_CODES)
