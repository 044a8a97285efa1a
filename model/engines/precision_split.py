"""The seam: the layer up to which a network is computed in float32, and behind it in bfloat16.

bfloat16 has eight bits: in it, the first layers lose the contrast of a ROI that has little.
"""

from __future__ import annotations

from typing import Any

# The fastest first; a network does not have all of them.
SEAMS = ("block1_conv2_act", "block4_add")


def seams(network: Any) -> list[str]:
    """Return the seams of a network made by `build_network`."""
    names = {layer.name for layer in network.layers}
    return [seam for seam in SEAMS if seam in names]


def engine_name(framework: str, seam: str) -> str:
    """Return the name of an engine that is bfloat16 behind a seam, as `Engine.name`."""
    return f"{framework}-bfloat16-after-{seam.partition('_')[0]}"


def up_to(network: Any, seam: str) -> Any:
    """Return the Keras model that ends with the seam's activation."""
    import keras

    return keras.Model(network.inputs, [network.get_layer(seam).output])


def behind(network: Any, seam: str) -> Any:
    """Return the Keras model that begins with the seam's activation and gives probability and heat map."""
    import keras

    from model.engines.heat_map import grad_cam

    return keras.Model([network.get_layer(seam).output], [network.outputs[0], grad_cam(network)])
