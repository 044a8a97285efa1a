"""Engines: each says what the network says in float32, or is refused; and nothing leaves the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from config.errors import ConfigurationError
from model.bundle import Architecture, Bundle, save_bundle
from model.crop import CropPolicy
from model.engines import convert, equivalence_check, hardware, load_engine
from model.engines import openvino as openvino_engine
from model.engines import tensorflow as tensorflow_module
from model.engines.precision_split import SEAMS
from model.engines.stderr_filter import framework_start
from model.engines.tensorflow import TensorFlowEngine, tensorflow_engine
from model.networks import build_network
from tests.support.bundles import small_description
from tests.support.repository import ROOT


def lively(network: Any) -> Any:
    """Set fixed random weights that keep activations alive, so that probabilities differ between ROIs."""
    rng = np.random.default_rng(1)
    for variable in network.weights:
        if len(variable.shape) > 1:
            fan_in = np.prod(variable.shape[:2] if "depthwise" in variable.path else variable.shape[:-1])
            variable.assign(rng.standard_normal(variable.shape, np.float32) * np.sqrt(2 / fan_in))
    size = network.inputs[0].shape[1]
    pooled = keras.Model(network.inputs, network.get_layer("probability").input)(
        equivalence_check.trial_rois(size)[..., None]
    )
    unit = network.get_layer("probability")
    kernel = abs(unit.kernel.numpy())  # heat adds up: where it nearly cancels, half precision may say anything
    scores = np.asarray(pooled) @ kernel
    scale = 0.04 / scores.std()  # of the logits: bfloat16 is off by as much as they are large
    unit.kernel.assign(scale * kernel)
    unit.bias.assign([-scale * scores.mean()])
    return network


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    network = lively(build_network("mobilenet_v2", "plain", input_size=75))
    folder = tmp_path_factory.mktemp("bundles") / "small"
    return save_bundle(folder, small_description(temperature=0.7), network)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "engine"


@pytest.fixture(scope="module")
def rois() -> np.ndarray:
    return np.random.default_rng(3).random((5, 75, 75), dtype=np.float32)


# Every process of the program gets this as its sitecustomize: it records each connection attempt.
WATCH = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open({file!r}, "a") as out:
            print(event, arguments[-1] if event == "socket.connect" else arguments, file=out)
sys.addaudithook(watch)
with open({file!r}, "a") as out:
    print("process", file=out)
"""
PROGRAM = """
import sys
from pathlib import Path
from model.bundle import load_bundle
from model.engines import load_engine
engine = load_engine(load_bundle(Path(sys.argv[1])), "openvino", cache=Path(sys.argv[2]))
print(engine.name)
assert not {"tensorflow", "keras"} & set(sys.modules)
assert sys.modules["openvino_telemetry"] is None
"""


def test_openvino_loads_without_tensorflow_and_tells_nobody(bundle: Bundle, cache: Path, tmp_path: Path) -> None:
    """First with the conversion, in its own process, then from the cache; the home forbids nothing."""
    seen = tmp_path / "seen"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH.format(file=str(seen)))
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(home), "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    for processes in (2, 1):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, bundle.path, cache],
            env=environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("openvino-")
        assert done.stderr == ""
        lines = seen.read_text().splitlines()
        assert lines == ["process"] * processes
        seen.unlink()
    assert not (home / "intel").exists()  # where it would keep an id of this user


def test_openvino_says_what_tensorflow_says(bundle: Bundle, cache: Path, rois: np.ndarray) -> None:
    exact, fast = TensorFlowEngine(bundle, 4), load_engine(bundle, "openvino", max_batch=2, cache=cache)
    assert fast.name.startswith("openvino-") and "as set; differs from TensorFlow float32" in fast.why
    assert (fast.digest, fast.threshold) == (exact.digest, exact.threshold)
    expected = exact.predict(rois)
    assert np.ptp(expected) > 0.01 and exact.heat_maps(rois).max() > 1e-3
    np.testing.assert_allclose(fast.predict(rois), expected, atol=0.01)
    maps = fast.heat_maps(rois)
    assert maps is not None and maps.dtype == np.float32
    np.testing.assert_allclose(maps, exact.heat_maps(rois), atol=0.25 * exact.heat_maps(rois).max())
    with pytest.raises(ValueError, match="was expected"):
        fast.predict(rois[:, 1:])


# As if TensorFlow were not installed.
HIDE = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "tensorflow" else real(name, package)
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
"""


def test_openvino_says_it_too_when_tensorflow_is_not_installed(
    bundle: Bundle, tmp_path: Path, rois: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(openvino_engine, "has_tensorflow", lambda: False)
    engine = openvino_engine.OpenVINOEngine(bundle)
    assert "OpenVINO float32" in engine.why
    exact = TensorFlowEngine(bundle)
    limit = 1e-4 if engine.name.endswith("float32") else equivalence_check.LIMIT
    np.testing.assert_allclose(engine.predict(rois), exact.predict(rois), atol=limit)
    heat = exact.heat_maps(rois)
    np.testing.assert_allclose(engine.heat_maps(rois), heat, atol=limit * heat.max() * 10)


def test_auto_takes_openvino_only_where_there_is_no_gpu(
    bundle: Bundle, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "DEVICES", tmp_path)
    engine = load_engine(bundle, cache=cache)
    assert engine.name.startswith("openvino-") and engine.why.startswith("there is no GPU; ")
    (tmp_path / "nvidia0").touch()
    engine = load_engine(bundle, cache=cache)
    assert engine.name == "tensorflow-float32" and engine.why.startswith("there is a GPU; ")


def test_an_engine_that_says_something_else_is_refused(bundle: Bundle, cache: Path, tmp_path: Path) -> None:
    """What TensorFlow said is on file; here it says another probability for one ROI."""
    load_engine(bundle, "openvino", cache=cache)
    (reference,) = cache.glob(f"*/{openvino_engine.REFERENCE}")
    was = reference.read_bytes()
    wrong = np.load(reference)
    wrong[7] += 0.02
    np.save(reference, wrong)
    try:
        with pytest.raises(
            ConfigurationError, match=r"refused: openvino-\w+ differs .* up to 0.02\d \(0.01 is allowed\)"
        ):
            load_engine(bundle, "openvino", cache=cache)
        engine = load_engine(bundle, "auto", cache=cache)
        assert engine.name == "tensorflow-float32" and "OpenVINO is refused: openvino-" in engine.why
    finally:
        reference.write_bytes(was)


def test_an_engine_that_is_not_installed_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r'pip install "mammod\[openvino\]"'):
        load_engine(bundle, "openvino")
    engine = load_engine(bundle)
    assert engine.name == "tensorflow-float32" and "OpenVINO is not installed" in engine.why
    with pytest.raises(ConfigurationError, match="no engine 'onnx'; known engines: auto, tensorflow, openvino"):
        load_engine(bundle, "onnx")


def test_what_cannot_be_converted_is_refused_with_the_reason(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be kept in"):
        load_engine(bundle, "openvino", cache=tmp_path / "file")
    gone = Bundle(tmp_path / "gone", bundle.manifest, "0" * 64)
    with pytest.raises(ConfigurationError, match=r"cannot be converted: .*no bundle in"):
        load_engine(gone, "openvino", cache=tmp_path / "engine")
    assert [path.name for path in (tmp_path / "engine").iterdir()] == ["lock"]


@pytest.fixture(scope="module")
def xception(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    description = small_description(
        architecture=Architecture(network="xception_c", input_size=71), crop=CropPolicy(kind="pixels", size=71)
    )
    network = lively(build_network("xception_c", input_size=71))
    return save_bundle(tmp_path_factory.mktemp("bundles") / "xception", description, network)


def test_bfloat16_may_begin_behind_a_layer(xception: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of cutting an Xception in two gives what the whole gives."""
    exact = TensorFlowEngine(xception, 8)
    rois = equivalence_check.trial_rois(71)[:8]
    monkeypatch.setattr(convert, "cpu_has_bfloat16", lambda: True)
    whole = openvino_engine.openvino().convert_model(exact.function)
    names = []
    for name, models in convert._plans(xception, whole):
        names.append(name)
        # All in float32 here: it is the cutting that is tried.
        probabilities, maps = openvino_engine.Graph([(model, "f32") for model, _ in models])(rois)
        np.testing.assert_allclose(probabilities, exact.predict(rois), atol=1e-4)
        np.testing.assert_allclose(maps, exact.heat_maps(rois), atol=1e-3 * exact.heat_maps(rois).max())
        assert [precision for _, precision in models][-1] == ("f32" if name == "openvino-float32" else "bf16")
    assert len(names) == len(SEAMS) + 2


@pytest.mark.parametrize("seam", SEAMS)
def test_tensorflow_too_may_begin_bfloat16_behind_a_layer(
    xception: Bundle, seam: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all in float32 the two halves give what the whole gives; in bfloat16, nearly."""
    exact, fast = TensorFlowEngine(xception, 8), TensorFlowEngine(xception, 8, seam)
    rois = equivalence_check.trial_rois(71)[:9]
    expected = exact.predict(rois)
    assert fast.name == f"tensorflow-bfloat16-after-{seam.partition('_')[0]}"
    off = np.abs(fast.predict(rois) - expected).max()
    assert 0 < off < 0.02
    assert fast.heat_maps(rois).dtype == np.float32
    np.testing.assert_allclose(fast.heat_maps(rois), exact.heat_maps(rois), atol=0.25 * exact.heat_maps(rois).max())
    monkeypatch.setattr(tensorflow_module, "_network", lambda bundle, policy: bundle.network())
    cut = TensorFlowEngine(xception, 8, seam)
    np.testing.assert_allclose(cut.predict(rois), expected, atol=1e-4)
    np.testing.assert_allclose(cut.heat_maps(rois), exact.heat_maps(rois), atol=1e-3 * exact.heat_maps(rois).max())


@pytest.mark.parametrize(
    ("harmed", "chosen"),
    [((), "after-block1"), (("after-block1",), "after-block4"), (("after-block1", "after-block4"), "float32")],
)
def test_bfloat16_of_a_cpu_is_tried_too(
    xception: Bundle, harmed: tuple[str, ...], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorflow_module, "cpu_has_bfloat16", lambda: True)
    honest = TensorFlowEngine.predict
    monkeypatch.setattr(
        TensorFlowEngine, "predict", lambda self, rois: honest(self, rois) + 0.02 * self.name.endswith(harmed or ("-",))
    )
    engine = tensorflow_engine(xception, 2)
    assert engine.name.endswith(chosen)
    if chosen == "float32":
        assert "bfloat16 is refused" in engine.why and "tensorflow-bfloat16-after-block4 0.02" in engine.why
    else:
        assert "differs from TensorFlow float32 by at most 0.00" in engine.why


@pytest.mark.parametrize(("of_cpu", "gpus"), [(False, []), (True, ["an old one"])])
def test_a_machine_without_bfloat16_computes_in_float32(
    xception: Bundle, of_cpu: bool, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorflow_module, "cpu_has_bfloat16", lambda: of_cpu)
    monkeypatch.setattr(tensorflow_module, "_gpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(tensorflow_module, "_gpus", lambda: gpus)
    assert tensorflow_engine(xception, 2).name == "tensorflow-float32"


@pytest.mark.parametrize("harm", [0.0, 0.02])
def test_bfloat16_of_a_gpu_is_tried_too(bundle: Bundle, harm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU in name only: its layers compute in bfloat16 all the same."""
    monkeypatch.setattr("model.engines.tensorflow._gpu_has_bfloat16", lambda: True)
    honest = TensorFlowEngine.predict
    monkeypatch.setattr(
        TensorFlowEngine, "predict", lambda self, rois: honest(self, rois) + harm * self.name.endswith("bfloat16")
    )
    engine = tensorflow_engine(bundle, 2)
    if harm:
        assert engine.name == "tensorflow-float32" and "bfloat16 is refused" in engine.why
    else:
        assert engine.name == "tensorflow-bfloat16"
        assert "differs from TensorFlow float32 by at most 0.00" in engine.why
        assert engine.heat_maps(equivalence_check.trial_rois(75)[:3]).dtype == np.float32


def test_the_trial_shows_a_network_what_it_tells_apart() -> None:
    """The ROIs lie in 0..1, differ, and are the same on every machine; a NaN passes no trial."""
    rois = equivalence_check.trial_rois(75)
    assert rois.dtype == np.float32 and rois.min() >= 0 and rois.max() <= 1
    assert len({roi.tobytes() for roi in rois}) == equivalence_check.COUNT
    contrast = rois.std(axis=(1, 2))
    assert contrast.min() < 0.1 < contrast.max()
    assert equivalence_check.difference(np.array([0.1, np.nan]), np.array([0.1, 0.2])) > 1
    assert equivalence_check.difference(np.array([0.1, 0.25]), np.array([0.1, 0.2])) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "2", "11"]), ("", []), ("-1", []), ("1", ["1"]), ("1, 0", ["1", "0"]), ("2,-1,3", ["2"])],
)
def test_gpus_are_those_that_cuda_would_use(
    visible: str | None, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia11", "nvidia0", "nvidia2", "nvidiactl", "nvidia-caps"):
        (tmp_path / name).touch()
    monkeypatch.setattr(hardware, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.gpus() == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", False),
    ],
)
def test_bfloat16_is_what_the_cpu_says(
    line: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: bf16 in name only\n{line}\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    assert hardware.cpu_has_bfloat16() is expected
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "none")
    assert not hardware.cpu_has_bfloat16()


START_UP = b"""WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795570159.974811   12803 port.cc:153] oneDNN custom operations are on.
2026-11-25 01:02:03.456789: I tensorflow/core/platform/cpu_feature_guard.cc:210] This TensorFlow binary is optimized
To enable the following instructions: AVX2 AVX512F, rebuild TensorFlow with the appropriate compiler flags.
E0000 00:00:1795570180.399674   12803 cuda_platform.cc:52] failed call to cuInit: INTERNAL: UNKNOWN ERROR (303)
"""
ERRORS = b"E0000 00:00:1795570180.399674 12803 stream.cc:1] out of memory\nTraceback (most recent call last):\n"


def test_start_up_lines_are_held_back_and_errors_are_not(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    with framework_start():
        os.write(2, START_UP + ERRORS)
    assert capfd.readouterr().err == ERRORS.decode()
    with pytest.raises(ImportError), framework_start():
        os.write(2, START_UP)
        raise ImportError
    assert capfd.readouterr().err == START_UP.decode()
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with framework_start():
        os.write(2, START_UP)
    assert capfd.readouterr().err == START_UP.decode()
