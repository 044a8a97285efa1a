"""A bundle: a folder with a network's weights and a `manifest.json` that describes how to use and judge it.

`weights.npz` holds one array per variable, keyed by its Keras path (`block1_conv1/kernel`), kernels as
float16 and vectors (biases, batch normalisation) as float32: half precision loses small variances, and
vectors are small anyway. No pickle, no backend's format: what one Keras backend saved loads in another.
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
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from model.crop import CropPolicy
from model.errors import BundleError
from model.manifest import RESEARCH_USE, Architecture, Description, Manifest, Metric, measured, stated_facts
from model.normalise import NormalisationPolicy

if TYPE_CHECKING:
    import keras

__all__ = [
    "FORMAT",
    "MANIFEST",
    "RESEARCH_USE",
    "WEIGHTS",
    "Architecture",
    "Bundle",
    "Description",
    "Manifest",
    "Metric",
    "card",
    "load_bundle",
    "save_bundle",
    "untrained_bundle",
]
FORMAT = 1
MANIFEST, WEIGHTS = "manifest.json", "weights.npz"
_MAX_MANIFEST_BYTES = 1_000_000


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle with verified manifest and weights; `digest` (sha256, hex) identifies both together."""

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

    The folder appears complete or not at all.

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
        BundleError: no bundle there, a manifest that is not JSON, of another format, with missing or unknown
            keys or impossible values, weights that are not the manifest's, or an untrained one without
            `allow_untrained`.
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
    # Over the manifest as read, not as interpreted: new keys with defaults must not change the identity.
    canonical = json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Bundle(path, manifest, hashlib.sha256(canonical.encode()).hexdigest())


def untrained_bundle(path: Path, seed: int = 0) -> Bundle:
    """Build an untrained xception_c at `path`, the same for the same seed on every backend.

    It is built in a process of its own, so that the caller does not keep Keras and its backend loaded.

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
            # Variance 1 / fan-in keeps the residual sums from running away; a depthwise filter has 1 channel.
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
    """Return a description of the bundle for people, in plain text."""
    manifest = bundle.manifest
    lines = [f"{manifest.name} {manifest.version}", ""]
    if not manifest.trained:
        lines += ["UNTRAINED: random weights. Its results mean nothing and must not be used.", ""]
    facts = {**stated_facts(manifest), "Digest": bundle.digest, "Weights sha256": manifest.weights_sha256}
    lines += [f"{name}: {value}" for name, value in facts.items()]
    lines += ["", "Measured:" if manifest.metrics else "Measured: nothing; no accuracy is claimed."]
    lines += [f"- {measured(metric)}" for metric in manifest.metrics]
    if manifest.limits:
        lines += ["", "Known limits:", *(f"- {limit}" for limit in manifest.limits)]
    return "\n".join(lines) + "\n"


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
        except ValueError as error:  # an object that only pickle can read
            raise BundleError(
                f"{path / WEIGHTS}: {name} is no array of numbers; the bundle is not one of mammod's"
            ) from error
        if values.shape != tuple(variable.shape):
            raise BundleError(f"{path / WEIGHTS}: {name} has shape {values.shape}, not {tuple(variable.shape)}")
        variable.assign(values.astype(np.float32))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
