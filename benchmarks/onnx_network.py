"""Write a Keras network as ONNX, layer by layer: Keras' exporter needs tf2onnx, too old for TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


class _Writer:
    """Nodes and weights of a graph in the making. Values are in ONNX's order (N, C, H, W)."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def convolution(
        self, x: str, name: str, kernel: np.ndarray, layer: Any, groups: int = 1, strides: Any = None
    ) -> str:
        """`kernel` in ONNX's order (out, in / groups, h, w)."""
        padding = {"auto_pad": "SAME_UPPER" if layer.padding == "same" else "VALID"}
        weights = self.constant(f"{name}/kernel", kernel)
        return self.add("Conv", [x, weights], name, strides=list(strides or layer.strides), group=groups, **padding)

    def layer(self, layer: Any, x: list[str]) -> str:
        """Return the name of the layer's output.

        Raises:
            NotImplementedError: a kind of layer that Xception does not have.
        """
        kind, name = type(layer).__name__, layer.name
        values = {variable.name: variable.numpy() for variable in layer.weights}
        if kind == "Concatenate":
            return self.add("Concat", x, name, axis=1)
        if kind == "Rescaling":
            scaled = self.add("Mul", [x[0], self.constant(f"{name}/scale", np.float32(layer.scale))], f"{name}/mul")
            return self.add("Add", [scaled, self.constant(f"{name}/offset", np.float32(layer.offset))], name)
        if kind == "Conv2D":
            return self.convolution(x[0], name, values["kernel"].transpose(3, 2, 0, 1), layer)
        if kind == "SeparableConv2D":
            depthwise = values["depthwise_kernel"].transpose(2, 3, 0, 1)
            deep = self.convolution(x[0], f"{name}/depthwise", depthwise, layer, groups=len(depthwise))
            return self.convolution(deep, name, values["pointwise_kernel"].transpose(3, 2, 0, 1), layer, strides=(1, 1))
        if kind == "BatchNormalization":
            names = ("gamma", "beta", "moving_mean", "moving_variance")
            inputs = [self.constant(f"{name}/{part}", values[part]) for part in names]
            return self.add("BatchNormalization", [x[0], *inputs], name, epsilon=layer.epsilon)
        if kind == "Activation":
            return self.add({"relu": "Relu"}[layer.activation.__name__], x, name)
        if kind == "MaxPooling2D":
            pad = "SAME_UPPER" if layer.padding == "same" else "VALID"
            return self.add(
                "MaxPool", x, name, kernel_shape=list(layer.pool_size), strides=list(layer.strides), auto_pad=pad
            )
        if kind in ("Add", "Multiply"):
            return self.add({"Add": "Add", "Multiply": "Mul"}[kind], x, name)
        if kind == "GlobalAveragePooling2D":
            pooled = self.add("GlobalAveragePool", x, f"{name}/pool")
            return self.add("Flatten", [pooled], name)
        if kind == "Dense":
            inputs = [self.constant(f"{name}/{part}", values[part]) for part in ("kernel", "bias")]
            dense = self.add("Gemm", [x[0], *inputs], f"{name}/dense")
            activation = {"linear": "Identity", "relu": "Relu", "sigmoid": "Sigmoid"}[layer.activation.__name__]
            return self.add(activation, [dense], name)
        if kind == "Dropout":
            return self.add("Identity", x, name)
        raise NotImplementedError(f"layer {name} is a {kind}")


def write_onnx(network: Any, path: Path) -> None:
    """Write an Xception of `build_network`: input "roi" (N, size, size, 1), output "probability" (N, 1)."""
    writer, outputs = _Writer(), {}
    size = network.inputs[0].shape[1]
    for layer in network.layers:
        if type(layer).__name__ == "InputLayer":
            outputs[layer.output.name] = writer.add("Transpose", ["roi"], "roi/channels_first", perm=[0, 3, 1, 2])
            continue
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        x = [outputs[tensor.name] for tensor in given]
        if type(layer).__name__ == "Multiply":  # squeeze and excitation: (N, C, H, W) by (N, C)
            shape = writer.constant(f"{layer.name}/shape", np.array([0, -1, 1, 1], np.int64))
            x[1] = writer.add("Reshape", [x[1], shape], f"{layer.name}/reshape")
        outputs[layer.output.name] = writer.layer(layer, x)
    graph = helper.make_graph(
        writer.nodes,
        network.name,
        [helper.make_tensor_value_info("roi", TensorProto.FLOAT, ["N", size, size, 1])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 1])],
        writer.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
