"""Secondary Capture (PS3.3 A.8.1): the picture of a case, for viewers without SR and presentation states."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as Concept
from pydicom.uid import SecondaryCaptureImageStorage

from daemon.reports import image_header
from daemon.reports.base_object import on_image
from daemon.reports.case import Case, Edition
from daemon.reports.rendering import Picture, pictures
from daemon.reports.statements import RESEARCH_USE, UNTRAINED

SERIES_NUMBER = 9149
SOURCE_IMAGE = Concept("121322", "DCM", "Source of image processing operation")
DERIVATION = Concept("113085", "DCM", "Spatial resampling")


def build(case: Case, edition: Edition) -> list[Dataset]:
    """Return one capture for each image, or frame of several, with a lesion, in the report's order.

    Raises:
        ReportError: see `rendering.pictures`.
    """
    return [_capture(picture, case, edition) for picture in pictures(case)]


def _capture(picture: Picture, case: Case, edition: Edition) -> Dataset:
    image, several = picture.image, image_header.frames(picture.image) > 1
    part = f"frame {picture.frame}" if several else ""
    # Not MG: a hanging protocol would take the picture for a mammogram.
    capture = on_image(
        image,
        case,
        edition,
        sop_class_uid=SecondaryCaptureImageStorage,
        modality="OT",
        series_number=SERIES_NUMBER,
        part=part,
    )
    capture.ConversionType = "WSD"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.ContentDate, capture.ContentTime = capture.InstanceCreationDate, capture.InstanceCreationTime
    capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = capture.ContentDate, capture.ContentTime
    capture.BurnedInAnnotation = "YES"
    _put_compression(capture, image)
    capture.PatientOrientation = ""
    capture.ImageComments = RESEARCH_USE if case.algorithm.trained else f"{UNTRAINED} {RESEARCH_USE}"
    capture.DerivationDescription = "Reduced view with outlines, crops and Grad-CAM heat maps; not for measurement"
    capture.DerivationCodeSequence = [_coded(DERIVATION)]
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    if several:
        source.ReferencedFrameNumber = picture.frame
    source.PurposeOfReferenceCodeSequence = [_coded(SOURCE_IMAGE)]
    capture.SourceImageSequence = [source]
    capture.SamplesPerPixel, capture.PhotometricInterpretation, capture.PlanarConfiguration = 3, "RGB", 0
    capture.Rows, capture.Columns = picture.pixels.shape[:2]
    capture.BitsAllocated = capture.BitsStored = 8
    capture.HighBit, capture.PixelRepresentation = 7, 0
    pixels = picture.pixels.tobytes()
    capture.PixelData = pixels + b"\0" * (len(pixels) % 2)
    capture["PixelData"].VR = "OB"
    return capture


def _put_compression(capture: Dataset, image: Dataset) -> None:
    """Mark the capture as lossy if its image is: derived images are marked, too (PS3.3 C.7.6.1.1.5)."""
    lossy = image_header.is_lossy(image)
    capture.LossyImageCompression = "01" if lossy else "00"
    if lossy and (ratios := image_header.compression_ratios(image)):
        capture.LossyImageCompressionRatio = ratios
    if lossy and (methods := image_header.compression_methods(image)):
        capture.LossyImageCompressionMethod = methods


def _coded(concept: Concept) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = (
        concept.value,
        concept.scheme_designator,
        concept.meaning,
    )
    return item
