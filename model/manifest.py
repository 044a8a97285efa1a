"""The content of a bundle's `manifest.json`, and its description for people."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.calibration import at_prevalence
from model.crop import CropPolicy
from model.normalise import NormalisationPolicy
from model.orientation import ORIENTATIONS
from model.roi import ROI_SIZE

RESEARCH_USE = "Research only. Not a medical device; no diagnosis or treatment may rest on it."
SCREENING = 0.01  # a prevalence to compare with, not a measured one


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Architecture(_Part):
    """The arguments of `model.networks.build_network`."""

    network: str
    head: str = "optimised"
    input_size: int = Field(default=ROI_SIZE, ge=32, le=2048)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    se_after: tuple[int, ...] | None = None
    se_ratio: int = Field(default=8, ge=1)


class Metric(_Part):
    """One measured figure with its 95 % interval, measured on `count` lesions of `data`."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    data: str
    count: int = Field(ge=1)


class Undecided(_Part):
    """The band of probabilities that decides nothing: split conformal prediction by class (Vovk 2012).

    A lesion whose probability is at least `low` and at most `high` cannot be decided at the `nominal`
    coverage. `coverage` is the share of lesions on `data` (`count` lesions) whose class was not excluded,
    `share` how many fell into the band.
    """

    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    nominal: float = Field(gt=0.5, lt=1)
    coverage: float = Field(ge=0, le=1)
    share: float = Field(ge=0, le=1)
    data: str
    count: int = Field(ge=1)

    def decides(self, probability: float) -> bool:
        """Return whether `probability` lies outside the band."""
        return not self.low <= probability <= self.high


class Rate(_Part):
    """The share of `count` ROIs of `data` that were flagged."""

    value: float = Field(ge=0, le=1)
    data: str
    count: int = Field(ge=1)


class Familiar(_Part):
    """A summary of the pixel statistics of training ROIs, see `model.familiarity`.

    A ROI farther than `limit` from `mean` (K), in units of `whitening` (K rows of K), is unlike the training
    data. `false_alarm` and `detection` are the measured shares of such ROIs among the training films' kind
    and others.
    """

    mean: tuple[float, ...]
    whitening: tuple[tuple[float, ...], ...]
    limit: float = Field(gt=0)
    false_alarm: Rate | None = None
    detection: tuple[Rate, ...] = ()


class Description(_Part):
    """A manifest without the keys that saving adds; `training` gives a bundle's data, split and recipe.

    A probability is the mean logit over `orientations` (see `model.orientation`), divided by `temperature`,
    plus `bias`. `prevalence` is the share of malignant lesions for which it holds. `kinds`, `image_types` and
    `views` (of View Position, such as "CC") limit what the bundle may be used for; empty ones set no limit.
    Keys with defaults may be missing, as they are in bundles of earlier versions.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,31}$")
    architecture: Architecture
    crop: CropPolicy
    normalisation: NormalisationPolicy
    threshold: float = Field(default=0.5, gt=0, lt=1)
    temperature: float = Field(default=1.0, gt=0)
    bias: float = 0.0
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    orientations: tuple[Annotated[int, Field(ge=0, lt=ORIENTATIONS)], ...] = Field(default=(0,), min_length=1)
    undecided: Undecided | None = None
    familiar: Familiar | None = None
    trained: bool
    training: dict[str, Any] = Field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    limits: tuple[str, ...] = ()
    licence: str
    intended_use: str = RESEARCH_USE
    kinds: tuple[Literal["mass", "calcification", "distortion", "asymmetry", "skin"], ...] = ()
    image_types: tuple[Literal["digital", "film", "tomosynthesis", "synthetic"], ...] = ()
    views: tuple[str, ...] = ()


class Manifest(Description):
    """`manifest.json`; `parameters` counts all variables, including batch normalisation's averages."""

    format: int
    parameters: int
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def stated_facts(manifest: Manifest) -> dict[str, str]:
    """Return the card's facts of a manifest, by name."""
    architecture = manifest.architecture
    return {
        "Intended use": manifest.intended_use,
        **_limits_of_use(manifest),
        "Licence": manifest.licence,
        "Network": f"{architecture.network}, {architecture.head} head, {manifest.parameters:,} parameters",
        "Input": f"{architecture.input_size} x {architecture.input_size} pixels",
        "Crop": _given(manifest.crop),
        "Normalisation": _given(manifest.normalisation),
        "Threshold": f"{manifest.threshold:g} after temperature {manifest.temperature:g}{_bias(manifest)}",
        **_reliability(manifest),
        **{f"Training, {key}": str(value) for key, value in manifest.training.items()},
    }


def _limits_of_use(manifest: Manifest) -> dict[str, str]:
    limits = {"kinds": manifest.kinds, "image types": manifest.image_types, "views": manifest.views}
    return {f"Made for {what}": ", ".join(named) for what, named in limits.items() if named}


def measured(metric: Metric) -> str:
    """Return one figure with its interval and the data it was measured on."""
    interval = "" if metric.low is None else f" (95 % interval {metric.low:.3f} to {metric.high:.3f})"
    return f"{metric.name} {metric.value:.3f}{interval} on {metric.data}, {metric.count} lesions"


def _bias(manifest: Manifest) -> str:
    return f" and bias {manifest.bias:g}" if manifest.bias else ""


def _reliability(manifest: Manifest) -> dict[str, str]:
    facts = {}
    if manifest.orientations != (0,):
        facts["Orientations averaged"] = f"{len(manifest.orientations)} of {ORIENTATIONS}"
    if manifest.prevalence is not None:
        read = at_prevalence(0.8, manifest.prevalence, SCREENING)
        facts["Prevalence"] = (
            f"probabilities hold where {100 * manifest.prevalence:.0f} % of the lesions are malignant, as of those that "
            f"calibrated it; where {100 * SCREENING:.0f} % are, 80 % reads {100 * read:.1f} %"
        )
    if manifest.undecided is not None:
        band = manifest.undecided
        facts["Undecided"] = (
            f"from {band.low:.3f} to {band.high:.3f}, at a coverage of {100 * band.nominal:.0f} % for each class; measured "
            f"{100 * band.coverage:.1f} %, with {100 * band.share:.0f} % undecided, on {band.data}, {band.count} lesions"
        )
    if manifest.familiar is not None:
        familiar = manifest.familiar
        alarm = () if familiar.false_alarm is None else (("false alarms", familiar.false_alarm),)
        rates = (*alarm, *(("found", rate) for rate in familiar.detection))
        facts["Unlike the training data"] = "; ".join(
            ["by pixel statistics"]
            + [f"{what} {100 * rate.value:.1f} % of {rate.data}, {rate.count} lesions" for what, rate in rates]
        )
    return facts


def _given(policy: BaseModel) -> str:
    return ", ".join(f"{name} {value}" for name, value in policy.model_dump(exclude_none=True).items())
