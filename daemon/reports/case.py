"""What every kind of report is made from: the case, the facts of the algorithm, and the edition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pydicom.dataset import Dataset

from daemon.dicom.uids import report_series_uid, report_uid
from daemon.lesions.lesion import LeftOut, Lesion
from daemon.reports.display_image import View
from model.prediction import Prediction
from model.roi import Roi


@dataclass(frozen=True)
class Measured:
    """A performance figure of the bundle, its 95 % interval if measured, and the lesions behind it."""

    name: str
    value: float
    low: float | None
    high: float | None
    data: str
    count: int


@dataclass(frozen=True)
class Algorithm:
    """The facts of the bundle that made the predictions.

    `device_uid` is derived from the bundle's digest (`daemon.dicom.uids.device_uid`). `threshold` is the
    probability (0..1) from which a lesion is called malignant. `intended_use` is the manifest's own sentence.
    The network's logit is divided by `temperature`, then `bias` is added (1 and 0: probabilities as the
    network gives them); the result holds at the `prevalence` of malignant lesions (None: not stated).
    `measured` is its known performance. `kinds`, `image_types` and `views` are those that the bundle may be
    used for (`model.manifest.Description`).
    """

    name: str
    version: str
    device_uid: str
    trained: bool
    threshold: float
    intended_use: str
    temperature: float = 1.0
    bias: float = 0.0
    prevalence: float | None = None
    measured: tuple[Measured, ...] = ()
    kinds: tuple[str, ...] = ()
    image_types: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """One lesion, its ROI, and the prediction for that ROI."""

    lesion: Lesion
    roi: Roi
    prediction: Prediction


@dataclass(frozen=True, eq=False)
class Case:
    """What every kind of report is made from: one lesion object, its images, and the results.

    `source` is the lesion object (a SEG or SR; its header is enough). `images` are headers by SOP Instance
    UID, at least of every image that a lesion lies on. They are best as just read from a file, as attributes
    that were not decoded yet are copied byte for byte. `results` are in the order of the report. `left_out`
    are the marks in the lesion object that were not classified. `views` are by image and frame, one for every
    frame with a lesion, for kinds that show pixels (`WITH_PICTURES`). `notes` are sentences on how the lesion
    object was read.
    """

    source: Dataset
    images: Mapping[str, Dataset]
    results: Sequence[Result]
    algorithm: Algorithm
    left_out: Sequence[LeftOut] = ()
    views: Mapping[tuple[str, int], View] = field(default_factory=dict)
    notes: Sequence[str] = ()


Predecessor = tuple[str, str, str, str]
"""SOP Class, SOP Instance, Series Instance and Study Instance UID of the report that a new one replaces."""


@dataclass(frozen=True)
class Edition:
    """One edition of one kind of report on a case: its UIDs, its time, and the report that it replaces.

    `written_at` is converted to the time zone of the image if both have one. A kind that makes one object for
    each image derives the UIDs of each from a `part` of its own, such as the image's SOP Instance UID.
    """

    kind: str
    source_uid: str
    digest: str
    bundle: str
    written_at: datetime
    predecessor: Predecessor | None = None

    def sop_instance_uid(self, part: str = "") -> str:
        """Return the derived SOP Instance UID of the object for this `part`."""
        return report_uid(self.source_uid, self.digest, self.bundle, self.kind, part)

    def series_instance_uid(self, part: str = "") -> str:
        """Return the derived Series Instance UID of the object for this `part`."""
        return report_series_uid(self.source_uid, self.digest, self.bundle, self.kind, part)
