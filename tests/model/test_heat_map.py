"""Grad-CAM: against networks whose answer is known by hand, and against finite differences."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from model.engines import load_engine
from model.engines.heat_map import grad_cam
from model.networks import build_network
from tests.support.bundles import small_bundle

WEIGHT, OTHER_WEIGHT = 3.0, -2.0


def heat_maps(network: keras.Model, rois: np.ndarray) -> np.ndarray:
    return np.asarray(keras.Model(network.input, grad_cam(network))(rois))


def corner_network() -> keras.Model:
    """Return a network of the top left quarter of 32 x 32: means of 4 x 4, one channel for, one against."""
    roi = keras.Input((32, 32, 1))
    x = layers.Cropping2D(((0, 16), (0, 16)))(roi)
    x = layers.ZeroPadding2D(((0, 16), (0, 16)))(x)
    means = layers.Conv2D(2, 4, strides=4, use_bias=False, name="means")
    x = layers.GlobalAveragePooling2D(name="head_pool")(means(x))
    unit = layers.Dense(1, activation="sigmoid", name="probability")
    network = keras.Model(roi, unit(x))
    means.set_weights([np.stack([np.full((4, 4, 1), 1 / 16), np.full((4, 4, 1), 1 / 16)], axis=-1)])
    unit.set_weights([np.array([[WEIGHT], [0.0]]), np.array([40.0])])  # a probability of 1 to seven digits
    return network


def means_of_4x4(rois: np.ndarray) -> np.ndarray:
    return rois.reshape(len(rois), 8, 4, 8, 4).mean(axis=(2, 4))


@pytest.fixture
def rois() -> np.ndarray:
    return np.random.default_rng(5).random((3, 32, 32), dtype=np.float32)


def test_what_the_network_cannot_see_is_cold_and_what_it_sees_has_its_share_of_the_score(rois: np.ndarray) -> None:
    maps = heat_maps(corner_network(), rois[..., None])
    assert maps.shape == (3, 8, 8) and maps.dtype == np.float32
    expected = WEIGHT * means_of_4x4(rois) / 64  # the pool is over 64 cells
    expected[:, 4:, :] = expected[:, :, 4:] = 0
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-7)


def test_what_lowers_the_score_is_cold(rois: np.ndarray) -> None:
    network = corner_network()
    network.get_layer("probability").set_weights([np.array([[WEIGHT], [WEIGHT]]), np.zeros(1)])
    both = heat_maps(network, rois[..., None])
    network.get_layer("probability").set_weights([np.array([[OTHER_WEIGHT], [0.0]]), np.zeros(1)])
    assert both.max() > 0
    assert not heat_maps(network, rois[..., None]).any()


def test_a_cell_is_what_scaling_its_activation_does_to_the_logit() -> None:
    """By central differences on Xception-C with its head of two hidden layers."""
    network = build_network("xception_c", input_size=71)
    rng = np.random.default_rng(1)
    for variable in network.weights:
        if len(variable.shape) > 1:
            variable.assign(rng.standard_normal(variable.shape, np.float32) / np.sqrt(np.prod(variable.shape[:-1])))
    roi = rng.random((1, 71, 71, 1), dtype=np.float32)
    activation = network.get_layer("head_pool").input
    features = keras.Model(network.input, activation)
    gamma = network.get_layer("block14_sepconv2_bn").gamma
    gamma.assign(gamma / np.asarray(features(roi)).max())  # random weights leave little; float32 needs some
    seen = np.asarray(features(roi))
    head = keras.Model(activation, network.output)

    def logit(activations: np.ndarray) -> float:
        p = float(np.asarray(head(activations))[0, 0])
        return np.log(p) - np.log1p(-p)

    slopes = np.zeros(seen.shape[1:3])
    for place in np.ndindex(slopes.shape):
        factor = np.ones((1, *slopes.shape, 1), np.float32)
        step = 0.005  # small against the head's bends, large against the seven digits of float32
        factor[0, *place] = 1 + step
        more = logit(seen * factor)
        factor[0, *place] = 1 - step
        slopes[place] = (more - logit(seen * factor)) / (2 * step)
    (heat,) = heat_maps(network, roi)
    assert (slopes > 0).any()
    np.testing.assert_allclose(heat, np.maximum(slopes, 0), rtol=0.02, atol=0.01 * np.abs(slopes).max())


def test_the_engine_maps_any_number_of_rois_and_its_probabilities_stay(tmp_path: Path) -> None:
    engine = load_engine(small_bundle(tmp_path / "bundle"), "tensorflow", max_batch=2)
    rois = np.random.default_rng(2).random((5, 75, 75), dtype=np.float32)
    before = engine.predict(rois)
    maps = engine.heat_maps(rois)
    assert maps is not None and maps.shape == (5, 3, 3)
    np.testing.assert_array_equal(engine.predict(rois), before)
    one = engine.heat_maps(rois[3:4])
    assert one is not None
    np.testing.assert_allclose(maps[3], one[0], rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="was expected"):
        engine.heat_maps(np.zeros((1, 80, 75), np.float32))
