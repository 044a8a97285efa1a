"""Grad-CAM (Selvaraju et al. 2017) as part of the network's own graph, so that every engine has it."""

from __future__ import annotations

from typing import Any

import numpy as np


def grad_cam(network: Any) -> Any:
    """Return the heat map of a network made by `build_network`: a Keras tensor float32 (N, h, w).

    It is taken over the last convolutional activation, which the head pools, and of the logit: the sigmoid's
    slope would scale it to nothing if the network is certain. A cell is its activation's contribution to the
    logit, to first order; negative contributions become 0. Only pooling and the head follow, so the gradient
    is written out: through Dense, batch normalisation and ReLU of the head's layers, last first.
    """
    from keras import ops

    names = {layer.name for layer in network.layers}
    activation = ops.cast(network.get_layer("head_pool").input, "float32")
    gradient: Any = _numbers(network.get_layer("probability").kernel)[:, 0][None]
    for number in (2, 1):
        if f"head_dense{number}" in names:
            norm = network.get_layer(f"head_bn{number}")
            slope = _numbers(norm.gamma) / np.sqrt(_numbers(norm.moving_variance) + norm.epsilon)
            passes = ops.cast(ops.cast(norm.output, "float32") > 0, "float32")
            kernel = _numbers(network.get_layer(f"head_dense{number}").kernel)
            gradient = ops.matmul(passes * (gradient * slope), np.ascontiguousarray(kernel.T))
    rows, columns = activation.shape[1:3]
    weights = ops.reshape(gradient, (-1, 1, 1, activation.shape[-1])) / (rows * columns)
    return ops.relu(ops.sum(ops.multiply(activation, weights), axis=-1))


def _numbers(variable: Any) -> np.ndarray:
    return np.asarray(variable.numpy(), np.float32)
