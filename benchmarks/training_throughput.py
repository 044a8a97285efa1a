"""Images per second of a training step: our input pipeline beside `keras.Model.fit` on arrays in memory.

Both fit the same compiled network in turn, on the same lesions; ours reads the 16-bit cache, augments and
converts in threads meanwhile. The ratio of the medians is what the input pipeline costs.

    python -m benchmarks.training_throughput CROPS --precision mixed_bfloat16
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import keras
import numpy as np
import typer

from training.batches import Batches, part_of
from training.fit import build_for, compile_for
from training.recipe import Recipe
from training.roi_cache import Crops, open_cache


def main(
    crops: Annotated[Path, typer.Argument(help="A crops cache made by mammod-train prepare.")],
    network: str = "xception_c",
    precision: str = "float32",
    batch: int = 16,
    steps: Annotated[int, typer.Option(help="Training steps of one run.")] = 12,
    pairs: Annotated[int, typer.Option(help="Runs of each, in turn.", min=1)] = 5,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the figures to.")] = None,
) -> None:
    """Measure and print images per second of both, and their ratio."""
    recipe = Recipe(network=network, init="none", batch=batch, precision=precision)
    result = measure(open_cache(crops), recipe, steps, pairs)
    print(
        f"{network}, {precision}, batch {batch}: ours {result['ours']:.2f} images/s, plain fit {result['plain']:.2f} "
        f"images/s; ours takes {result['ratio']:.3f} x the time ({pairs} pairs: "
        f"{', '.join(f'{ratio:.3f}' for ratio in result['ratios'])})"
    )
    if out is not None:
        out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def measure(crops: Crops, recipe: Recipe, steps: int, pairs: int) -> dict[str, object]:
    """Time `pairs` of runs of `steps` steps each; images/s of both, and the ratio of the median times."""
    keras.mixed_precision.set_global_policy(recipe.precision)
    keras.utils.set_random_seed(recipe.seed)
    model = build_for(recipe, crops.pixels.shape[1])
    compile_for(model, recipe)
    numbers = np.resize(np.arange(len(crops)), steps * recipe.batch)
    rois = np.stack([crops.roi(number) for number in numbers])[..., None]
    labels = crops.malignant[numbers].astype(np.float32)[:, None]

    def ours(epoch: int) -> None:
        batches = Batches(crops, part_of(crops, numbers), recipe.batch, augmentation="fly", seed=0, epoch=epoch)
        model.fit(batches, shuffle=False, verbose=0)

    def plain(_epoch: int) -> None:
        model.fit(rois, labels, batch_size=recipe.batch, verbose=0)

    for warm_up in (plain, ours):
        warm_up(0)
    times = [(_seconds(ours, pair), _seconds(plain, pair)) for pair in range(1, pairs + 1)]
    of_ours, of_plain = median(mine for mine, _ in times), median(theirs for _, theirs in times)
    return {
        "network": recipe.network,
        "precision": recipe.precision,
        "size": crops.pixels.shape[1],
        "batch": recipe.batch,
        "images": len(numbers),
        "backend": keras.backend.backend(),
        "ours": len(numbers) / of_ours,
        "plain": len(numbers) / of_plain,
        "ratio": of_ours / of_plain,
        "ratios": [mine / theirs for mine, theirs in times],
    }


def _seconds(run: Callable[[int], None], pair: int) -> float:
    begun = time.perf_counter()
    run(pair)
    return time.perf_counter() - begun


if __name__ == "__main__":
    typer.run(main)
