"""From a lesion object and its images to predictions and reports; no ledger, no network, no spool."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from config import settings
from daemon.errors import DecoderKilled, LesionError, ReportError
from daemon.events.timings import Stage, timed
from daemon.lesions.lesion import LeftOut, Lesion, LesionReading
from daemon.lesions.reader import lesion_references
from daemon.reports import no_result
from daemon.reports.case import Algorithm, Case, Edition, Predecessor, Result
from daemon.reports.display_image import View
from daemon.reports.registry import KINDS
from daemon.workers.classifier_pool import ClassifierPool
from daemon.workers.decoder_pool import DecoderPool
from model.errors import ImageError
from model.roi import Roi
from model.roi_extraction import Cut

CLASSIFY_LIMIT_S = 600

# What a report copies from the image: a correction there is worth a new report.
IDENTITY_KEYWORDS = (
    "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one job reads: headers of the lesion object and of its images, and the path of each file."""

    source: Dataset
    images: Mapping[str, Dataset]
    image_paths: Mapping[str, Path]
    source_path: Path
    segmentation_paths: Mapping[str, Path]

    @property
    def source_uid(self) -> str:
        """Return the SOP Instance UID of the lesion object."""
        return str(self.source.SOPInstanceUID)


@dataclass(frozen=True, eq=False)
class Classified:
    """One lesion object, read and classified.

    `digest` is the sha256 of all that was read (see `reading_digest`). `views` are the frames with a lesion,
    by image and frame, if pictures were requested.
    """

    reading: LesionReading
    results: tuple[Result, ...]
    digest: str
    views: Mapping[tuple[str, int], View] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Written:
    """One report object; its SOP Instance UID is derived, so the same work gives the same UID."""

    kind: str
    report: Dataset

    @property
    def sop_instance_uid(self) -> str:
        """Return the SOP Instance UID of the report."""
        return str(self.report.SOPInstanceUID)


@dataclass(frozen=True, eq=False)
class Reports:
    """The reports of every kind, and for each kind that could not be made the reason."""

    written: tuple[Written, ...]
    refused: Mapping[str, str]


class MissingInstances(LesionError):
    """The lesion object needs instances that are not here; `uids` are their SOP Instance UIDs."""

    def __init__(self, uids: Collection[str]) -> None:
        super().__init__(f"it names instances that are not here: {', '.join(uids)}; send them too")
        self.uids = tuple(uids)


def read_inputs(source_path: Path, path_of: Callable[[str], Path | None]) -> Inputs:
    """Read a lesion object and what it names; `path_of` returns the file of a UID, if it is here.

    A report may name only a segmentation, which names the images, so missing instances may show in two steps.

    Raises:
        MissingInstances: something it names is not here.
        LesionError: the object marks no lesion, or names no image.
    """
    source = dcmread(source_path, stop_before_pixels=True)
    references = lesion_references(source)
    if references is None:
        raise LesionError("the object marks no lesion; expected a SEG, or an SR with a region on an image")
    segmentation_paths = _here(references.segmentation_uids, path_of)
    image_uids = [*references.image_uids]
    for path in segmentation_paths.values():
        named = lesion_references(dcmread(path, stop_before_pixels=True))
        image_uids += named.image_uids if named else ()
    image_paths = _here(image_uids, path_of)
    return Inputs(
        source=source,
        images={uid: dcmread(path, stop_before_pixels=True) for uid, path in image_paths.items()},
        image_paths=image_paths,
        source_path=source_path,
        segmentation_paths=segmentation_paths,
    )


def read_what_is_here(source_path: Path, path_of: Callable[[str], Path | None]) -> Inputs:
    """Return the headers of a lesion object and of its images that are here, enough to refer to them."""
    source = dcmread(source_path, stop_before_pixels=True)
    try:
        references = lesion_references(source)
    except LesionError:
        references = None
    named = {uid: path_of(uid) for uid in (references.image_uids if references else ())}
    paths = {uid: path for uid, path in named.items() if path is not None}
    images = {uid: dcmread(path, stop_before_pixels=True) for uid, path in paths.items()}
    return Inputs(source, images, paths, source_path, {})


def _here(uids: Sequence[str], path_of: Callable[[str], Path | None]) -> dict[str, Path]:
    paths = {uid: path_of(uid) for uid in dict.fromkeys(uids)}
    missing = [uid for uid, path in paths.items() if path is None]
    if missing:
        raise MissingInstances(missing)
    return {uid: path for uid, path in paths.items() if path is not None}


class Pipeline:
    """Decoders and classifier in sequence, for one bundle. Thread-safe; without state."""

    def __init__(self, decoders: DecoderPool, classifier: ClassifierPool, algorithm: Algorithm, bundle: str) -> None:
        self._decoders = decoders
        self._classifier = classifier
        self._algorithm = algorithm
        self._bundle = bundle

    def classify(self, inputs: Inputs, lesions: settings.Lesions, *, pictures: bool = False) -> Classified:
        """Read the lesions, cut and classify each; `pictures` asks for views and heat maps, too.

        Raises:
            LesionError: the lesion object cannot be used.
            ImageError: an image cannot be decoded or cut, or one of the objects needs too much time or
                memory.
            DecoderKilled, DecoderUnavailable: see `DecoderPool`.
        """
        with timed(Stage.DECODE):
            reading = self._decoders.read(inputs.source_path, inputs.image_paths, inputs.segmentation_paths, lesions)
            rois = self._cut(inputs.image_paths, reading.lesions)
        with timed(Stage.CLASSIFY):
            futures = [self._classifier.submit(roi.pixels, heat_map=pictures) for roi in rois]
            results = tuple(
                Result(lesion, roi, future.result(CLASSIFY_LIMIT_S))
                for lesion, roi, future in zip(reading.lesions, rois, futures, strict=True)
            )
        views = self._views(inputs.image_paths, reading.lesions) if pictures else {}
        return Classified(reading, results, reading_digest(reading, rois, inputs.images), views)

    def _cut(self, image_paths: Mapping[str, Path], lesions: Sequence[Lesion]) -> list[Roi]:
        """Return one ROI per lesion, in order; each image is decoded once."""
        rois: dict[int, Roi] = {}
        for image_uid in dict.fromkeys(lesion.image_uid for lesion in lesions):
            chosen = [index for index, lesion in enumerate(lesions) if lesion.image_uid == image_uid]
            cuts = [Cut(lesions[index].frame, lesions[index].outline) for index in chosen]
            rois.update(zip(chosen, self._decoders.cut(image_paths[image_uid], cuts), strict=True))
        return [rois[index] for index in range(len(lesions))]

    def _views(self, image_paths: Mapping[str, Path], lesions: Sequence[Lesion]) -> dict[tuple[str, int], View]:
        """Return the view of every frame with a lesion, except for frames that cannot be shown."""
        views = {}
        for uid, frame in dict.fromkeys((lesion.image_uid, lesion.frame) for lesion in lesions):
            with suppress(ImageError, DecoderKilled):
                views[uid, frame] = self._decoders.view(image_paths[uid], frame)
        return views

    def case(self, inputs: Inputs, classified: Classified) -> Case:
        """Return what the reports on a classified lesion object are made from."""
        return Case(
            inputs.source,
            inputs.images,
            classified.results,
            self._algorithm,
            classified.reading.left_out,
            classified.views,
        )

    def write(
        self,
        inputs: Inputs,
        classified: Classified,
        kinds: Sequence[str],
        earlier: Callable[[str], Sequence[Predecessor]],
    ) -> Reports:
        """Return the reports on a classified lesion object, one or more of each kind.

        `earlier(kind)` gives the reports of that kind on this lesion object so far, oldest first; the new
        report replaces the newest of them. A kind that cannot be made of this object does not prevent the
        others.

        Raises:
            ReportError: no kind could be made.
        """
        case = self.case(inputs, classified)
        written: list[Written] = []
        refused: dict[str, str] = {}
        for kind in kinds:
            edition = Edition(kind, inputs.source_uid, classified.digest, self._bundle, datetime.now(UTC))
            try:
                written += _newest(edition, earlier(kind), partial(KINDS[kind], case))
            except ReportError as error:
                refused[kind] = str(error)
        if not written:
            raise ReportError("; ".join(dict.fromkeys(refused.values())))
        return Reports(tuple(written), refused)

    def write_without_result(
        self,
        inputs: Inputs,
        digest: str,
        reason: str,
        earlier: Callable[[str], Sequence[Predecessor]],
        *,
        failed: bool,
        left_out: Sequence[LeftOut] = (),
    ) -> Written:
        """Return the report on a lesion object without a result: nothing to classify, or failed.

        The report's UIDs are derived from `digest`, which identifies what was read.

        Raises:
            ReportError: the lesion object does not give what a report needs.
        """
        kind = no_result.KIND
        edition = Edition(kind, inputs.source_uid, digest, self._bundle, datetime.now(UTC))
        case = Case(inputs.source, inputs.images, (), self._algorithm, left_out)
        (written,) = _newest(edition, earlier(kind), lambda edition: [no_result.build(case, edition, failed, reason)])
        return written


def _newest(
    edition: Edition, earlier: Sequence[Predecessor], build: Callable[[Edition], Sequence[Dataset]]
) -> list[Written]:
    """Return what `build` makes of `edition` as the newest of the `earlier` reports of its kind.

    `earlier` begins with the oldest. A reading that was reported before, and replaced since, is reported
    anew; its digest then says how often it has returned. The newest report is made once more with the same
    UIDs.
    """
    known = {uid for _, uid, _, _ in earlier}
    digest = edition.digest
    for returned in count(1):
        own = {edition.sop_instance_uid()}
        replaced = [report for report in earlier if report[1] not in own]
        written = [
            Written(edition.kind, made)
            for made in build(replace(edition, predecessor=replaced[-1] if replaced else None))
        ]
        own = {made.sop_instance_uid for made in written}  # a kind may make one for each image
        if not own & known or earlier[-1][1] in own:
            return written
        edition = replace(edition, digest=f"{digest} returned {returned}")
    raise AssertionError("unreachable")


def reading_digest(reading: LesionReading, rois: Sequence[Roi], images: Mapping[str, Dataset]) -> str:
    """Return the sha256 of all that was read.

    The same objects in another encoding give the same digest, and so the same report UID.
    """
    read = {
        "lesions": [_lesion_facts(lesion) for lesion in reading.lesions],
        "left_out": [asdict(left_out) for left_out in reading.left_out],
        "rois": [hashlib.sha256(roi.pixels.tobytes()).hexdigest() for roi in rois],
        "identity": {
            uid: [str(header.get(keyword, "")) for keyword in IDENTITY_KEYWORDS] for uid, header in images.items()
        },
    }
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _lesion_facts(lesion: Lesion) -> list[Any]:
    codes = (lesion.finding, lesion.finding_site, lesion.laterality, *lesion.labels)
    return [
        lesion.image_uid,
        lesion.frame,
        lesion.region.graphic_type,
        lesion.region.points.round(3).tolist(),
        lesion.tracking_id,
        lesion.tracking_uid,
        *(code and [code.value, code.scheme] for code in codes),
    ]
