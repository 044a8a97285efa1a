"""Where bfloat16 begins in a network: behind a layer, the seam, up to which all is computed in float32.

bfloat16 has eight bits: where the first layers see a ROI of little contrast through it, they see little.
"""

from __future__ import annotations

from typing import Any

# The fastest first; a network has not all of them.
SEAMS = ("block1_conv2_act", "block4_add")


def seams(network: Any) -> list[str]:
    """Those of a network made by `build_network`."""
    names = {layer.name for layer in network.layers}
    return [seam for seam in SEAMS if seam in names]


def engine_name(framework: str, seam: str) -> str:
    """As `Engine.name` has it."""
    return f"{framework}-bfloat16-after-{seam.partition('_')[0]}"


def up_to(network: Any, seam: str) -> Any:
    """The Keras model that ends with the seam's activation."""
    import keras

    return keras.Model(network.inputs, [network.get_layer(seam).output])


def behind(network: Any, seam: str) -> Any:
    """The Keras model that begins with it, and gives probability and heat map."""
    import keras

    from model.engines.heat_map import grad_cam

    return keras.Model([network.get_layer(seam).output], [network.outputs[0], grad_cam(network)])
