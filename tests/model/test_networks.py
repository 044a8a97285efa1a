"""Architectures: the paper's parameter counts, and keras.applications weights in every shared layer."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from model.errors import NetworkError
from model.networks import NAMES, build_network, load_backbone_weights

# The paper's table without its misprints: MobileNetV2 reads 3,873,505 there (two digits swapped), Xception-A
# 23,369,115 (no layer leaves that remainder modulo 8; A moves a stride and adds no parameter to Xception's
# 23,227,433), Xception-C 24,875,297 (0.02 % off; Xception + SE of 1536 and 2048 channels).
OPTIMISED = {
    "resnet50": 25_953_665,
    "mobilenet_v2": 3_837_505,
    "inception_v3": 24_168_737,
    "xception": 23_227_433,
    "xception_a": 23_227_433,
    "xception_b": 24_278_313,
    "xception_c": 24_869_865,
}


def test_parameter_counts_are_the_papers() -> None:
    assert tuple(OPTIMISED) == NAMES
    for name, parameters in OPTIMISED.items():
        network = build_network(name)
        assert network.count_params() == parameters, name
        assert network.input_shape == (None, 299, 299, 1)
        assert network.output_shape == (None, 1)


def test_plain_head_is_one_unit_on_the_pooled_backbone() -> None:
    # keras.applications.Xception without top has 20,861,480 parameters and 2048 channels.
    assert build_network("xception", "plain").count_params() == 20_861_480 + 2048 + 1


def test_squeeze_and_excitation_goes_where_it_is_asked() -> None:
    # The reading of B that the paper's count rules out: SE after each of the last two.
    assert build_network("xception_b", se_after=(1, 2)).count_params() == 24_869_865
    # r = 16: two dense layers 2048 -> 128 -> 2048 with biases.
    wide = 2 * 2048 * 128 + 128 + 2048
    assert build_network("xception_b", se_ratio=16).count_params() == 23_227_433 + wide


def test_a_keeps_the_shapes_of_xception() -> None:
    xception, pooled = build_network("xception"), build_network("xception_a")
    for block in (2, 3, 4, 13):
        assert (
            xception.get_layer(f"block{block}_add").output.shape == pooled.get_layer(f"block{block}_add").output.shape
        )
        assert xception.get_layer(f"block{block}_shortcut_conv").strides == (2, 2)
        assert pooled.get_layer(f"block{block}_shortcut_conv").strides == (1, 1)
        assert pooled.get_layer(f"block{block}_shortcut_pool").pool_size == (2, 2)


def test_names_do_not_depend_on_what_was_built_before() -> None:
    first = [variable.path for variable in build_network("inception_v3", input_size=75).weights]
    assert [variable.path for variable in build_network("inception_v3", input_size=75).weights] == first
    assert len(set(first)) == len(first)


@pytest.fixture(scope="module")
def xception_start(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Path]:
    source = keras.applications.Xception(weights=None, include_top=False)
    _randomise(source)
    path = tmp_path_factory.mktemp("weights") / "xception.weights.h5"
    source.save_weights(path)
    return source, path


@pytest.mark.parametrize("name", ["xception", "xception_a", "xception_b", "xception_c"])
def test_every_shared_layer_of_xception_receives_its_weights(
    name: str, xception_start: tuple[keras.Model, Path]
) -> None:
    source, path = xception_start
    network = build_network(name, input_size=71)
    loaded = load_backbone_weights(network, path)
    givers = [layer for layer in source.layers if layer.weights]
    assert len(loaded) == len(set(loaded)) == len(givers) == 80
    # The shortcuts are told apart by shape: 128, 256, 728 and 1024 filters.
    by_filters = {layer.filters: layer for layer in givers if layer.name.startswith("conv2d")}
    for block, filters in ((2, 128), (3, 256), (4, 728), (13, 1024)):
        kernel = network.get_layer(f"block{block}_shortcut_conv").kernel
        np.testing.assert_array_equal(kernel, by_filters[filters].kernel)
    norms = {layer.gamma.shape[0]: layer for layer in givers if layer.name.startswith("batch_normalization")}
    for block, filters in ((2, 128), (3, 256), (4, 728), (13, 1024)):
        _assert_same_weights(network.get_layer(f"block{block}_shortcut_bn"), norms[filters])
    named = [layer for layer in givers if layer.name.startswith("block")]
    assert len(named) == 80 - 8
    for layer in named:
        _assert_same_weights(network.get_layer(layer.name), layer)
    # Nothing but the head and SE was left out.
    rest = {layer.name for layer in network.layers if layer.weights} - set(loaded)
    assert all(left.startswith(("head_", "probability", "block14_se")) for left in rest)


def test_plain_xception_computes_what_keras_applications_does(xception_start: tuple[keras.Model, Path]) -> None:
    source, path = xception_start
    network = build_network("xception", "plain", input_size=71)
    load_backbone_weights(network, path)
    roi = np.random.default_rng(1).random((1, 71, 71, 1), dtype=np.float32)
    prepared = keras.applications.xception.preprocess_input(np.repeat(roi, 3, axis=-1) * 255)
    ours = keras.Model(network.input, network.get_layer("head_pool").output)
    expected = np.asarray(source(prepared)).mean(axis=(1, 2))
    np.testing.assert_allclose(np.asarray(ours(roi)), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "application"),
    [
        ("resnet50", keras.applications.ResNet50),
        ("mobilenet_v2", keras.applications.MobileNetV2),
        ("inception_v3", keras.applications.InceptionV3),
    ],
)
def test_other_backbones_receive_their_weights_and_scaling(name: str, application: type, tmp_path: Path) -> None:
    # Of the network's own size: MobileNetV2 pads odd sizes differently from unknown ones.
    source = application(weights=None, include_top=False, input_shape=(75, 75, 3))
    _randomise(source)
    source.save_weights(tmp_path / "start.weights.h5")
    network = build_network(name, "plain", input_size=75)
    load_backbone_weights(network, tmp_path / "start.weights.h5")
    roi = np.random.default_rng(2).random((1, 75, 75, 1), dtype=np.float32)
    preprocess = getattr(keras.applications, name).preprocess_input
    prepared = preprocess(np.repeat(roi, 3, axis=-1) * 255)
    ours = keras.Model(network.input, network.get_layer("head_pool").output)
    expected = np.asarray(source(prepared)).mean(axis=(1, 2))
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(np.asarray(ours(roi)), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_init_none_leaves_the_weights() -> None:
    network = build_network("mobilenet_v2", "plain", input_size=75)
    before = network.get_weights()
    assert load_backbone_weights(network, "none") == ()
    for left, right in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_what_does_not_fit_is_named(tmp_path: Path, xception_start: tuple[keras.Model, Path]) -> None:
    with pytest.raises(NetworkError, match=r"'vgg16'.*xception_c"):
        build_network("vgg16")
    with pytest.raises(NetworkError, match=r"'deep'.*plain, optimised"):
        build_network("xception", "deep")
    with pytest.raises(NetworkError, match="se_after"):
        build_network("resnet50", se_after=(1,))
    network = build_network("mobilenet_v2", input_size=75)
    with pytest.raises(NetworkError, match=r"no weights file .*absent\.weights\.h5"):
        load_backbone_weights(network, tmp_path / "absent.weights.h5")
    with pytest.raises(NetworkError, match=r"does not hold weights of keras\.applications\.MobileNetV2"):
        load_backbone_weights(network, xception_start[1])
    (tmp_path / "text.weights.h5").write_text("not HDF5")
    with pytest.raises(NetworkError, match="does not hold weights"):
        load_backbone_weights(network, tmp_path / "text.weights.h5")


def _randomise(model: keras.Model) -> None:
    """Set random values, also of batch normalisation and biases, whose zeros and ones would test nothing."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))


def _assert_same_weights(left: keras.layers.Layer, right: keras.layers.Layer) -> None:
    for ours, theirs in zip(left.get_weights(), right.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
