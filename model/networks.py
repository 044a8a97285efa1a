"""The paper's seven networks, written against Keras 3 alone, and their ImageNet start.

Every network takes grey ROIs of float32 (N, size, size, 1) in 0..1 and gives float32 (N, 1), the probability
of malignancy before calibration. Repeating grey to three channels and the scaling that the ImageNet weights
were trained with (Xception, InceptionV3 and MobileNetV2: 2x - 1; ResNet50: 255x less the channel means) are
layers of the network, so training and service cannot differ in them.

Xception-A, B and C (paper, Network):

- A: the shortcut of the four down-sampling blocks (2, 3, 4 and 13), a 1x1 convolution with stride 2, becomes
  max-pooling 2x2 with stride 2 and a 1x1 convolution with stride 1. The kernels keep their shape.
- B: squeeze-and-excitation (SE, r = 8) after the last separable convolution of the exit flow.
- C: A, and SE after each of the last two separable convolutions. SE acts on the activation that follows the
  convolution, so that batch normalisation still sees what its ImageNet statistics were made from.

Parameters with the optimised head, which decide what the text leaves open:

| network      | paper's table | built here | |
|--------------|---------------|------------|-|
| resnet50     | 25,953,665    | 25,953,665 | Dense 1024 and Dense 256 in the head |
| inception_v3 | 24,168,737    | 24,168,737 | |
| xception     | 23,227,433    | 23,227,433 | |
| mobilenet_v2 |  3,873,505    |  3,837,505 | the table swaps two digits |
| xception_b   | 24,278,313    | 24,278,313 | ONE SE; with SE after each of the last two it is 24,869,865 |
| xception_a   | 23,369,115    | 23,227,433 | a misprint: no layer leaves that remainder modulo 8 |
| xception_c   | 24,875,297    | 24,869,865 | 0.02 % off, the nearest; SE after the last two, as in the text |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from keras import layers

from model.errors import NetworkError
from model.roi import ROI_SIZE

HEADS = ("plain", "optimised")


@dataclass(frozen=True)
class _Design:
    """The keras.applications network behind a name, its input scaling, and the changes to Xception."""

    application: Callable[..., keras.Model]
    scale: float = 2.0
    offset: float | tuple[float, ...] = -1.0
    pooled_shortcut: bool = False
    se_after: tuple[int, ...] = ()


_DESIGNS = {
    # Mean BGR of ImageNet, in keras.applications' order of channels ("caffe" mode).
    "resnet50": _Design(keras.applications.ResNet50, 255.0, (-103.939, -116.779, -123.68)),
    "mobilenet_v2": _Design(keras.applications.MobileNetV2),
    "inception_v3": _Design(keras.applications.InceptionV3),
    "xception": _Design(keras.applications.Xception),
    "xception_a": _Design(keras.applications.Xception, pooled_shortcut=True),
    "xception_b": _Design(keras.applications.Xception, se_after=(2,)),
    "xception_c": _Design(keras.applications.Xception, pooled_shortcut=True, se_after=(1, 2)),
}
NAMES = tuple(_DESIGNS)

# keras.applications.Xception names its shortcuts by a session counter; these are their blocks, in order.
_SHORTCUT_BLOCKS = (2, 3, 4, 13)


def build_network(
    name: str,
    head: str = "optimised",
    *,
    input_size: int = ROI_SIZE,
    dropout: float = 0.5,
    se_after: Sequence[int] | None = None,
    se_ratio: int = 8,
) -> keras.Model:
    """Build one network with random weights: (N, input_size, input_size, 1) in 0..1 -> (N, 1) in 0..1.

    `head` is "plain" (global average pool, one sigmoid unit) or "optimised" (global average pool, twice
    [Dense -> BatchNorm -> ReLU -> Dropout] with 1024 and 256 units, one sigmoid unit). `se_after` names the
    separable convolutions of the exit flow's last block (1: 1536 channels, 2: 2048) that SE follows, to
    override the name's own; Xception only. Layer names are the same in every session and on every backend.

    Raises:
        NetworkError: an unknown name or head, or SE requested for a network other than Xception.
    """
    design = _design(name)
    if head not in HEADS:
        raise NetworkError(f"there is no head {head!r}; known heads: {', '.join(HEADS)}")
    xception = design.application is keras.applications.Xception
    placement = design.se_after if se_after is None else tuple(sorted(set(se_after)))
    if not set(placement) <= ({1, 2} if xception else set()):
        raise NetworkError(
            f"se_after={placement} does not fit {name}: only an Xception takes it, with values of 1 and 2"
        )

    grey = keras.Input((input_size, input_size, 1), name="roi")
    x = layers.Concatenate(name="grey_to_rgb")([grey, grey, grey])
    x = layers.Rescaling(design.scale, design.offset, name="imagenet_scaling")(x)
    if xception:
        x = _xception(x, design.pooled_shortcut, placement, se_ratio)
    else:
        x = design.application(weights=None, include_top=False, input_tensor=x).output
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    if head == "optimised":
        for number, units in enumerate((1024, 256), start=1):
            x = layers.Dense(units, name=f"head_dense{number}")(x)
            x = layers.BatchNormalization(name=f"head_bn{number}")(x)
            x = layers.Activation("relu", name=f"head_relu{number}")(x)
            x = layers.Dropout(dropout, name=f"head_dropout{number}")(x)
    # float32 whatever the policy of the other layers: a bfloat16 probability has three digits.
    probability = layers.Dense(1, activation="sigmoid", dtype="float32", name="probability")(x)
    return _with_session_free_names(keras.Model(grey, probability, name=name))


def load_backbone_weights(model: keras.Model, init: str | Path) -> tuple[str, ...]:
    """Load keras.applications weights into `model` (made by `build_network`); head and SE keep theirs.

    `init` is "none" (leave everything), "imagenet" (keras.applications downloads them) or the path of a
    weights file (.weights.h5) of the keras.applications network of that name without its top. Returns the
    names of the layers that received weights.

    Raises:
        NetworkError: the file is missing or belongs to another network, or the download failed.
    """
    if init == "none":
        return ()
    source = _application_with_weights(model.name, init)
    targets = {layer.name: layer for layer in model.layers if layer.weights}
    loaded = []
    for name, layer in _names_here(source, model.name).items():
        try:
            targets[name].set_weights(layer.get_weights())
        except (KeyError, ValueError) as error:
            raise NetworkError(f"{init}: layer {name} does not fit the network {model.name}: {error}") from error
        loaded.append(name)
    return tuple(loaded)


def _design(name: str) -> _Design:
    try:
        return _DESIGNS[name]
    except KeyError:
        raise NetworkError(f"there is no network {name!r}; known networks: {', '.join(NAMES)}") from None


def _application_with_weights(name: str, init: str | Path) -> keras.Model:
    application = _design(name).application
    if init == "imagenet":
        try:
            return application(weights="imagenet", include_top=False)
        except Exception as error:  # keras passes on any error of its download
            raise NetworkError(
                f"ImageNet weights of {name} could not be downloaded ({error}); name a weights file instead"
            ) from error
    path = Path(init)
    if not path.is_file():
        raise NetworkError(f"no weights file {path}; give 'imagenet', 'none' or the path of a .weights.h5 file")
    source = application(weights=None, include_top=False)
    try:
        source.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise NetworkError(
            f"{path} does not hold weights of keras.applications.{application.__name__} without top: {reason}"
        ) from error
    return source


def _names_here(source: keras.Model, name: str) -> dict[str, Any]:
    """Return a keras.applications model's layers with weights, by their names in `build_network`."""
    names = _session_free_names(source)
    by_name = {names[layer.name]: layer for layer in source.layers if layer.weights}
    if _design(name).application is not keras.applications.Xception:
        return by_name
    here = {}
    for number, block in enumerate(_SHORTCUT_BLOCKS):
        suffix = f"_{number}" if number else ""
        here[f"conv2d{suffix}"] = f"block{block}_shortcut_conv"
        here[f"batch_normalization{suffix}"] = f"block{block}_shortcut_bn"
    return {here.get(session_free, session_free): layer for session_free, layer in by_name.items()}


# Keras' name for an unnamed layer: its class and a counter that runs over the whole session.
_COUNTED = re.compile(
    r"(conv2d|batch_normalization|activation|add|concatenate|max_pooling2d|average_pooling2d)(?:_(\d+))?"
)


def _session_free_names(model: keras.Model) -> dict[str, str]:
    """Return session-independent names by layer name: counters restart at the model's first layer."""
    numbers: dict[str, list[int]] = {}
    for layer in model.layers:
        if counted := _COUNTED.fullmatch(layer.name):
            numbers.setdefault(counted[1], []).append(int(counted[2] or 0))
    names = {layer.name: layer.name for layer in model.layers}
    for stem, found in numbers.items():
        for rank, number in enumerate(sorted(found)):
            names[f"{stem}_{number}" if number else stem] = f"{stem}_{rank}" if rank else stem
    return names


def _with_session_free_names(model: keras.Model) -> keras.Model:
    names = _session_free_names(model)
    if all(old == new for old, new in names.items()):
        return model

    def renamed(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "name": names[layer.name]})

    return keras.models.clone_model(model, clone_function=renamed)


def _xception(x: Any, pooled_shortcut: bool, se_after: tuple[int, ...], se_ratio: int) -> Any:
    """Build Xception without its top (Chollet 2017, fig. 5), with the layer names of keras.applications."""
    x = _relu(_norm(_conv(x, 32, 3, 2, "block1_conv1", padding="valid"), "block1_conv1_bn"), "block1_conv1_act")
    x = _relu(_norm(_conv(x, 64, 3, 1, "block1_conv2", padding="valid"), "block1_conv2_bn"), "block1_conv2_act")
    x = _down_block(x, 2, (128, 128), pooled_shortcut)
    x = _down_block(x, 3, (256, 256), pooled_shortcut)
    x = _down_block(x, 4, (728, 728), pooled_shortcut)
    for block in range(5, 13):
        residual = x
        for number in (1, 2, 3):
            x = _separable(_relu(x, f"block{block}_sepconv{number}_act"), 728, block, number)
        x = layers.Add(name=f"block{block}_add")([x, residual])
    x = _down_block(x, 13, (728, 1024), pooled_shortcut)
    for number, filters in enumerate((1536, 2048), start=1):
        x = _relu(_separable(x, filters, 14, number), f"block14_sepconv{number}_act")
        if number in se_after:
            x = _squeeze_and_excitation(x, se_ratio, f"block14_se{number}")
    return x


def _down_block(x: Any, block: int, filters: tuple[int, int], pooled_shortcut: bool) -> Any:
    name, stride = f"block{block}_shortcut", 2
    shortcut = x
    if pooled_shortcut:
        shortcut, stride = layers.MaxPooling2D(2, strides=2, padding="same", name=f"{name}_pool")(x), 1
    shortcut = _norm(_conv(shortcut, filters[1], 1, stride, f"{name}_conv", padding="same"), f"{name}_bn")
    if block > 2:  # block 2 follows a ReLU
        x = _relu(x, f"block{block}_sepconv1_act")
    x = _relu(_separable(x, filters[0], block, 1), f"block{block}_sepconv2_act")
    x = _separable(x, filters[1], block, 2)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name=f"block{block}_pool")(x)
    return layers.Add(name=f"block{block}_add")([x, shortcut])


def _squeeze_and_excitation(x: Any, ratio: int, name: str) -> Any:
    channels = x.shape[-1]
    weight = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    weight = layers.Dense(channels // ratio, activation="relu", name=f"{name}_reduce")(weight)
    weight = layers.Dense(channels, activation="sigmoid", name=f"{name}_excite")(weight)
    return layers.Multiply(name=f"{name}_scale")([x, weight])


def _conv(x: Any, filters: int, size: int, stride: int, name: str, padding: str) -> Any:
    return layers.Conv2D(filters, size, strides=stride, padding=padding, use_bias=False, name=name)(x)


def _separable(x: Any, filters: int, block: int, number: int) -> Any:
    name = f"block{block}_sepconv{number}"
    return _norm(layers.SeparableConv2D(filters, 3, padding="same", use_bias=False, name=name)(x), f"{name}_bn")


def _norm(x: Any, name: str) -> Any:
    return layers.BatchNormalization(name=name)(x)


def _relu(x: Any, name: str) -> Any:
    return layers.Activation("relu", name=name)(x)
