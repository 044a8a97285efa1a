"""Bundles: what is saved comes back, on any backend, and nothing that is wrong with one goes unnoticed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from model.bundle import (
    Architecture,
    Bundle,
    Metric,
    _build_untrained,
    card,
    load_bundle,
    save_bundle,
    untrained_bundle,
)
from model.crop import CropPolicy
from model.engines import load_engine
from model.engines.batches import bucket
from model.errors import BundleError
from model.networks import build_network
from tests.support.bundles import small_bundle, small_description
from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def copy(saved: Bundle, tmp_path: Path) -> Path:
    for file in saved.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_what_is_saved_comes_back_in_half_precision(tmp_path: Path) -> None:
    model = build_network("mobilenet_v2", "plain", input_size=75)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(0, 0.1, variable.shape).astype(np.float32))
    save_bundle(tmp_path / "b", small_description(), model)
    loaded = load_bundle(tmp_path / "b").network()
    for before, after in zip(model.weights, loaded.weights, strict=True):
        expected = np.asarray(before)
        if expected.ndim > 1:
            expected = expected.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(after), expected)
    kernels = sum(int(np.prod(variable.shape)) for variable in model.weights if len(variable.shape) > 1)
    assert (tmp_path / "b" / "weights.npz").stat().st_size < 1.2 * 2 * kernels + 4 * (model.count_params() - kernels)


def test_the_digest_is_that_of_manifest_and_weights(saved: Bundle, copy: Path, tmp_path: Path) -> None:
    assert load_bundle(copy).digest == saved.digest
    # Written again with other spaces it is the same bundle; with another threshold it is another.
    _change(copy, lambda manifest: None)
    assert load_bundle(copy).digest == saved.digest
    _change(copy, lambda manifest: manifest.update(threshold=0.4))
    assert load_bundle(copy).digest != saved.digest
    assert small_bundle(tmp_path / "other").digest != saved.digest  # other random weights


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_loads_what_tensorflow_saved(backend: str, saved: Bundle) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    program = (
        "import sys, pathlib, numpy, keras; from model.bundle import load_bundle\n"
        f"assert keras.backend.backend() == {backend!r}\n"
        "model = load_bundle(pathlib.Path(sys.argv[1])).network()\n"
        "rois = numpy.random.default_rng(0).random((2, 75, 75, 1), dtype='float32')\n"
        "print(*keras.ops.convert_to_numpy(model(rois, training=False))[:, 0])\n"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program, saved.path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rois = np.random.default_rng(0).random((2, 75, 75, 1), dtype="float32")
    expected = np.asarray(saved.network()(rois, training=False))[:, 0]
    np.testing.assert_allclose([float(word) for word in done.stdout.split()], expected, atol=1e-4)


def test_loading_imports_no_framework(saved: Bundle) -> None:
    program = (
        "import sys, pathlib; from model.bundle import load_bundle, card; import model.roi_extraction, model.engines\n"
        "card(load_bundle(pathlib.Path(sys.argv[1])))\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, saved.path], cwd=ROOT, check=True, timeout=100)


def _change(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "format 2, this program reads format 1"),
        (lambda m: m.pop("format"), "format None"),
        (lambda m: m.pop("threshold") and m.pop("crop"), "crop: Field required"),
        (lambda m: m.update(weights="../../etc/passwd"), "weights: Extra inputs"),
        (lambda m: m.update(name="../x"), "name: "),
        (lambda m: m.update(threshold=1.5), "threshold: "),
        (lambda m: m["crop"].update(kind="round"), "crop.kind: "),
        (lambda m: m["crop"].update(size=299), "cut to 299 pixels .* takes 75"),
        (lambda m: m.update(weights_sha256="0" * 64), "sha256 .* manifest says 0000"),
        (lambda m: m.update(trained=False), "untrained.*--allow-untrained"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(change: Any, message: str, copy: Path) -> None:
    _change(copy, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


def test_untrained_is_taken_where_it_is_allowed(copy: Path) -> None:
    _change(copy, lambda manifest: manifest.update(trained=False))
    assert not load_bundle(copy, allow_untrained=True).manifest.trained


def test_damaged_and_missing_files_are_refused(copy: Path, tmp_path: Path) -> None:
    weights = bytearray((copy / "weights.npz").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "weights.npz").write_bytes(weights)
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(copy)
    (copy / "weights.npz").unlink()
    with pytest.raises(BundleError, match="incomplete"):
        load_bundle(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="not JSON"):
        load_bundle(copy)
    (copy / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match="not a JSON object"):
        load_bundle(copy)
    with pytest.raises(BundleError, match=r"no bundle in .*nowhere"):
        load_bundle(tmp_path / "nowhere")


class _Payload:
    """Unpickling it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_a_bundle_with_a_pickle_in_it_is_refused_and_the_pickle_never_read(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    with np.load(copy / "weights.npz") as arrays:
        harmful: dict[str, Any] = dict(arrays)
    name = next(iter(harmful))
    harmful[name] = np.array([_Payload(target)], dtype=object)
    np.savez(copy / "weights.npz", **harmful)
    digest = hashlib.sha256((copy / "weights.npz").read_bytes()).hexdigest()
    _change(copy, lambda manifest: manifest.update(weights_sha256=digest))
    with pytest.raises(BundleError, match="no array of numbers"):
        load_bundle(copy).network()
    assert not target.exists()
    np.load(copy / "weights.npz", allow_pickle=True)[name]
    assert target.exists(), "it would have been executed"


def test_weights_of_another_network_are_refused(copy: Path) -> None:
    _change(copy, lambda manifest: manifest["architecture"].update(head="optimised"))
    with pytest.raises(BundleError, match=r"does not fit mobilenet_v2: .* head_"):
        load_bundle(copy).network()


def test_nothing_is_half_written(saved: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="exists already"):
        save_bundle(saved.path, small_description(), build_network("mobilenet_v2", "plain", input_size=75))
    model = build_network("mobilenet_v2", "plain", input_size=75)
    kernel = model.get_layer("Conv1").kernel
    kernel.assign(np.full(kernel.shape, 1e6, np.float32))  # more than float16 holds
    with pytest.raises(BundleError, match="Conv1/kernel are not finite"):
        save_bundle(tmp_path / "b", small_description(), model)
    assert not list(tmp_path.iterdir())


def test_the_card_says_what_was_measured_and_what_it_is_for(tmp_path: Path) -> None:
    metric = Metric(name="AUC", value=0.8, low=0.75, high=0.85, data="held-out masses", count=152)
    bundle = small_bundle(tmp_path / "b", metrics=(metric,), limits=("Masses only.",), training={"split": "by patient"})
    text = card(bundle)
    assert "AUC 0.800 (95 % interval 0.750 to 0.850) on held-out masses, 152 lesions" in text
    for said in ("Research only", "Masses only.", "by patient", bundle.digest, "2,259,265 parameters"):
        assert said in text
    assert "UNTRAINED" not in text
    nothing = card(small_bundle(tmp_path / "c", trained=False))
    assert "UNTRAINED" in nothing
    assert "no accuracy is claimed" in nothing


def test_descriptions_that_make_no_sense_are_refused() -> None:
    for wrong in ({"temperature": 0}, {"temperature": float("nan")}, {"version": "1/2"}, {"licence": None}):
        with pytest.raises(ValidationError):
            small_description(**wrong)


def test_an_untrained_xception_c_is_the_same_each_time(tmp_path: Path) -> None:
    first = untrained_bundle(tmp_path / "a", seed=3)
    _build_untrained(tmp_path / "b", seed=3)  # what it does, in this process
    again = load_bundle(tmp_path / "b", allow_untrained=True)
    assert first.digest == again.digest
    assert not first.manifest.trained
    assert first.manifest.architecture == Architecture(network="xception_c")
    assert first.manifest.parameters == 24_869_865
    assert (first.path / "weights.npz").stat().st_size < 52e6
    with pytest.raises(BundleError, match="untrained"):
        load_bundle(first.path)


def test_the_engine_gives_the_networks_calibrated_probability(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "b", temperature=2.0)
    engine = load_engine(bundle, "tensorflow", max_batch=4)
    rois = np.random.default_rng(1).random((7, 75, 75), dtype=np.float32)
    raw = np.asarray(bundle.network()(rois[..., None], training=False), np.float64)[:, 0]
    # sigmoid(logit(p) / 2) by hand: odds to the power of one half.
    odds = np.sqrt(raw / (1 - raw))
    np.testing.assert_allclose(engine.predict(rois), odds / (1 + odds), atol=1e-5)
    # Padding and company in a batch change nothing.
    np.testing.assert_allclose(engine.predict(rois[2:3]), engine.predict(rois)[2:3], atol=1e-5)
    assert engine.predict(rois).dtype == np.float32
    assert engine.predict(rois[:0]).shape == (0,)
    assert (engine.name, engine.digest, engine.threshold) == ("tensorflow-float32", bundle.digest, 0.5)
    with pytest.raises(ValueError, match=r"\(N, 75, 75\) was expected"):
        engine.predict(np.zeros((1, 80, 75), np.float32))


def test_buckets_are_powers_of_two_up_to_the_largest() -> None:
    assert [bucket(count, 6) for count in range(1, 7)] == [1, 2, 4, 4, 6, 6]


def test_a_crop_of_another_size_than_the_paper() -> None:
    assert CropPolicy(size=75).side_px == 299
