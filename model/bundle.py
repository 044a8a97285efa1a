"""A bundle: a folder with a network's weights and `manifest.json`, which says all that is needed to use and judge it.

`weights.npz` holds one array per variable, keyed by its Keras path (`block1_conv1/kernel`), kernels as float16 and
vectors (biases, batch normalisation) as float32: half precision loses small variances, and vectors are small anyway.
No pickle, no backend's format: what one Keras backend saved loads in another.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.crop import CropPolicy
from model.errors import BundleError
from model.normalise import NormalisationPolicy
from model.roi import ROI_SIZE

if TYPE_CHECKING:
    import keras

FORMAT = 1
MANIFEST, WEIGHTS = "manifest.json", "weights.npz"
_MAX_MANIFEST_BYTES = 1_000_000
RESEARCH_USE = "Research only. Not a medical device; no diagnosis or treatment may rest on it."


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
    """One measured figure with its 95 % interval, and on what it was measured (`data`, `count` lesions)."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    data: str
    count: int = Field(ge=1)


class Description(_Part):
    """All of a manifest but what saving adds. `training` names data, split and recipe of a trained bundle.

    `kinds`, `image_types` and `views` limit what the bundle may be used for; empty ones set no limit. Kinds are "mass",
    "calcification", "distortion", "asymmetry", "skin"; image types "digital", "film", "tomosynthesis", "synthetic"; views
    as in View Position ("CC", "MLO").
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,31}$")
    architecture: Architecture
    crop: CropPolicy
    normalisation: NormalisationPolicy
    threshold: float = Field(default=0.5, gt=0, lt=1)
    temperature: float = Field(default=1.0, gt=0)
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
    """`manifest.json`. `parameters` counts all variables, those of batch normalisation's averages included."""

    format: int
    parameters: int
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose manifest and weights were verified. `digest` (sha256, hex) is the identity of both together."""

    path: Path
    manifest: Manifest
    digest: str

    def network(self) -> keras.Model:
        """Build the network with the bundle's weights; imports Keras and its backend.

        Raises:
            BundleError: the weights are not those of the architecture that the manifest names.
        """
        from model.networks import build_network

        architecture = self.manifest.architecture.model_dump()
        model = build_network(architecture.pop("network"), architecture.pop("head"), **architecture)
        with np.load(self.path / WEIGHTS, allow_pickle=False) as arrays:
            _assign(model, arrays, self.path)
        return model


def save_bundle(path: Path, description: Description, model: keras.Model) -> Bundle:
    """Write `model` (made by `build_network` as `description.architecture` says) as a bundle at `path`.

    The folder appears whole or not at all.

    Raises:
        BundleError: `path` exists, or a weight does not fit float16.
    """
    if path.exists():
        raise BundleError(f"{path} exists already; remove it or name another folder for the bundle")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        arrays = {variable.path: _on_disk(variable.path, np.asarray(variable)) for variable in model.weights}
        np.savez(partial / WEIGHTS, allow_pickle=False, **arrays)
        manifest = Manifest(
            **dict(description),
            format=FORMAT,
            parameters=model.count_params(),
            weights_sha256=_sha256(partial / WEIGHTS),
        )
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return load_bundle(path, allow_untrained=True)


def load_bundle(path: Path, *, allow_untrained: bool = False) -> Bundle:
    """Read and verify the bundle in folder `path`; imports no Keras.

    Raises:
        BundleError: no bundle there, a manifest that is not JSON, of another format, with missing or unknown keys or
            impossible values, weights that are not the manifest's, or an untrained one without `allow_untrained`.
    """
    raw = _read_manifest(path)
    if raw.get("format") != FORMAT:
        raise BundleError(
            f"{path / MANIFEST}: bundle format {raw.get('format')!r}, this program reads format {FORMAT}; "
            "export the bundle again with the mammod-train of this version"
        )
    try:
        manifest = Manifest(**raw)
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise BundleError(f"{path / MANIFEST}: {lines}") from error
    if manifest.architecture.input_size != manifest.crop.size:
        raise BundleError(
            f"{path / MANIFEST}: ROIs are cut to {manifest.crop.size} pixels (crop.size), "
            f"the network takes {manifest.architecture.input_size} (architecture.input_size)"
        )
    try:
        found = _sha256(path / WEIGHTS)
    except OSError as error:
        raise BundleError(f"{path / WEIGHTS}: {error.strerror}; the bundle is incomplete, copy it again") from error
    if found != manifest.weights_sha256:
        raise BundleError(
            f"{path / WEIGHTS} has sha256 {found[:16]}..., the manifest says {manifest.weights_sha256[:16]}...; "
            "the weights are damaged or not this bundle's, copy the bundle again"
        )
    if not manifest.trained and not allow_untrained:
        raise BundleError(
            f"bundle {manifest.name} {manifest.version} in {path} is untrained: its results mean nothing; "
            "name a trained bundle in [model] bundle, or pass --allow-untrained to try the service out"
        )
    # Over what was read, not what this version makes of it: new keys with defaults must not change the identity.
    canonical = json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Bundle(path, manifest, hashlib.sha256(canonical.encode()).hexdigest())


def untrained_bundle(path: Path, seed: int = 0) -> Bundle:
    """Build an untrained xception_c at `path`, the same for the same seed on every backend.

    It is built in a process of its own, so that the caller need not hold Keras and its backend afterwards.

    Raises:
        BundleError: see `save_bundle`.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        process.submit(_build_untrained, path, seed).result()
    return load_bundle(path, allow_untrained=True)


def _build_untrained(path: Path, seed: int) -> None:
    from model.networks import build_network

    architecture = Architecture(network="xception_c")
    model = build_network(architecture.network, architecture.head)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if len(variable.shape) > 1:
            # Variance 1 / fan-in keeps the residual sums from running away; a depthwise filter has one channel.
            inputs = variable.shape[:2] if variable.name == "depthwise_kernel" else variable.shape[:-1]
            variable.assign(rng.standard_normal(variable.shape, np.float32) / np.sqrt(np.prod(inputs)))
    description = Description(
        name="untrained-xception-c",
        version=str(seed),
        architecture=architecture,
        crop=CropPolicy(kind="pixels"),
        normalisation=NormalisationPolicy(),
        trained=False,
        limits=("Random weights: every probability it gives is meaningless.",),
        licence="Apache-2.0",
        intended_use="Trying out the software. " + RESEARCH_USE,
    )
    save_bundle(path, description, model)


def card(bundle: Bundle) -> str:
    """The bundle as a person reads it, in plain text."""
    manifest = bundle.manifest
    architecture = manifest.architecture
    lines = [f"{manifest.name} {manifest.version}", ""]
    if not manifest.trained:
        lines += ["UNTRAINED: random weights. Its results mean nothing and must not be used.", ""]
    facts = {
        "Intended use": manifest.intended_use,
        **{
            f"Made for {what}": ", ".join(named)
            for what, named in (
                ("kinds", manifest.kinds),
                ("image types", manifest.image_types),
                ("views", manifest.views),
            )
            if named
        },
        "Licence": manifest.licence,
        "Network": f"{architecture.network}, {architecture.head} head, {manifest.parameters:,} parameters",
        "Input": f"{architecture.input_size} x {architecture.input_size} pixels",
        "Crop": _given(manifest.crop),
        "Normalisation": _given(manifest.normalisation),
        "Threshold": f"{manifest.threshold:g} after temperature {manifest.temperature:g}",
        **{f"Training, {key}": value for key, value in manifest.training.items()},
        "Digest": bundle.digest,
        "Weights sha256": manifest.weights_sha256,
    }
    lines += [f"{name}: {value}" for name, value in facts.items()]
    lines += ["", "Measured:" if manifest.metrics else "Measured: nothing; no accuracy is claimed."]
    lines += [f"- {_measured(metric)}" for metric in manifest.metrics]
    if manifest.limits:
        lines += ["", "Known limits:", *(f"- {limit}" for limit in manifest.limits)]
    return "\n".join(lines) + "\n"


def _given(policy: BaseModel) -> str:
    return ", ".join(f"{name} {value}" for name, value in policy.model_dump(exclude_none=True).items())


def _measured(metric: Metric) -> str:
    interval = "" if metric.low is None else f" (95 % interval {metric.low:.3f} to {metric.high:.3f})"
    return f"{metric.name} {metric.value:.3f}{interval} on {metric.data}, {metric.count} lesions"


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{file} is larger than {_MAX_MANIFEST_BYTES:,} bytes; that is no manifest")
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"no bundle in {path} ({MANIFEST}: {error.strerror}); name a bundle's folder") from error
    except ValueError as error:
        raise BundleError(f"{file} is not JSON: {error}; copy the bundle again") from error
    if not isinstance(raw, dict):
        raise BundleError(f"{file} is not a JSON object; copy the bundle again")
    return raw


def _on_disk(name: str, values: np.ndarray) -> np.ndarray:
    if values.ndim < 2:
        stored = values.astype(np.float32)
    else:
        with np.errstate(over="ignore"):
            stored = values.astype(np.float16)
    if not np.isfinite(stored).all():
        raise BundleError(f"weights {name} are not finite in half precision; the training run went wrong")
    return stored


def _assign(model: keras.Model, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    variables = {variable.path: variable for variable in model.weights}
    if different := set(variables) ^ set(arrays):
        raise BundleError(
            f"{path / WEIGHTS} does not fit {model.name}: {len(different)} variables are in only one of them, "
            f"such as {min(different)}"
        )
    for name, variable in variables.items():
        try:
            values = arrays[name]
        except ValueError as error:  # an object that only pickle could read
            raise BundleError(
                f"{path / WEIGHTS}: {name} is no array of numbers; the bundle is not one of mammod's"
            ) from error
        if values.shape != tuple(variable.shape):
            raise BundleError(f"{path / WEIGHTS}: {name} has shape {values.shape}, not {tuple(variable.shape)}")
        variable.assign(values.astype(np.float32))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
