"""Train the paper's grid: seven networks with two heads, and the ImageNet start against a random one.

Its tables are shown beside ours. Each cell is a run of its own below `out`/runs. Finished cells are kept, so
the command may be stopped and started again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from model.networks import HEADS, NAMES
from training import html_report
from training.errors import RunError
from training.evaluate import evaluate_run
from training.evaluation_report import curves
from training.fit import Build, Report, fit
from training.recipe import Recipe
from training.roi_cache import Crops
from training.run_folder import check_same_run
from training.split import Split

# Test accuracy in per cent with the plain and the optimised head (paper, Table 1).
TABLE_1 = {
    "resnet50": (86.60, 90.54),
    "mobilenet_v2": (71.24, 74.92),
    "inception_v3": (88.64, 92.26),
    "xception": (89.52, 93.14),
    "xception_c": (93.76, 97.46),
}
# Test accuracy and AUC in per cent with the optimised head (paper, Table 2).
TABLE_2 = {
    "resnet50": (90.54, 94.41),
    "mobilenet_v2": (74.92, 80.47),
    "inception_v3": (92.26, 95.86),
    "xception": (93.14, 98.44),
    "xception_a": (95.13, 98.54),
    "xception_b": (95.87, 98.87),
    "xception_c": (97.46, 99.12),
}
# The file names expected in a folder of ImageNet weights; the Xceptions share one.
WEIGHTS = {name: ("xception" if name.startswith("xception") else name) + ".weights.h5" for name in NAMES}
_CURVES_OF = "xception_c"


@dataclass(frozen=True)
class Cell:
    """Identify one run of the grid. `transfer` False starts from random weights."""

    network: str
    head: str
    transfer: bool = True

    @property
    def name(self) -> str:
        """Return the name of the cell's run folder."""
        return f"{self.network}-{self.head}-{'imagenet' if self.transfer else 'random'}"


def grid(networks: Sequence[str] = NAMES, heads: Sequence[str] = HEADS) -> list[Cell]:
    """Return the cells: every network with every head, and one network from random weights.

    That network is Xception-C, or the last of `networks` if Xception-C is not among them.
    """
    random_start = Cell(_CURVES_OF if _CURVES_OF in networks else networks[-1], heads[-1], transfer=False)
    return [*(Cell(network, head) for network in networks for head in heads), random_start]


def reproduce(
    cells: Sequence[Cell],
    recipe: Recipe,
    weights: str | Path,
    crops: Crops,
    split: Split,
    out: Path,
    *,
    workers: int = 2,
    report: Callable[[Cell], Report] | None = None,
    build: Build | None = None,
) -> dict[str, Any]:
    """Run the missing cells of the grid and write `out`/report.html and results.json.

    Returns the content of results.json. Each cell takes `recipe` with its own network, head and start.
    `weights` is "imagenet" (downloaded by keras.applications), "none" (no transfer anywhere) or a folder of
    the files that WEIGHTS names. `report` returns the callback for a cell's steps.

    Raises:
        RunError: a weights file is missing, found before anything is trained; see `fit`.
    """
    recipes = {cell: recipe_of(recipe, cell, weights) for cell in cells}
    results: dict[str, dict[str, Any]] = {}
    for cell, of_cell in recipes.items():
        folder = out / "runs" / cell.name
        if (folder / "evaluation.json").exists():
            check_same_run(folder, of_cell, crops, split)
        else:
            fit(of_cell, crops, split, folder, workers=workers, report=report(cell) if report else None, build=build)
            evaluate_run(folder, crops, folder, build=build)
            keras.backend.clear_session()
        results[cell.name] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    summary = _summary(cells, results)
    (out / "results.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    _write_report(out / "report.html", cells, results, summary)
    return summary


def recipe_of(recipe: Recipe, cell: Cell, weights: str | Path) -> Recipe:
    """Return `recipe` with the cell's network, head and start; `weights` is as for `reproduce`.

    Raises:
        RunError: the cell's weights file is missing.
    """
    init = "none"
    if cell.transfer and weights != "none":
        init = "imagenet" if weights == "imagenet" else str(Path(weights) / WEIGHTS[cell.network])
        if init != "imagenet" and not Path(init).is_file():
            raise RunError(
                f"no ImageNet weights {init} for {cell.network}; put them there, or give 'imagenet' or 'none'"
            )
    return replace(recipe, network=cell.network, head=cell.head, init=init)


def _summary(cells: Sequence[Cell], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for cell in cells:
        whole = results[cell.name]["sets"][0]
        rows.append(
            {
                "network": cell.network,
                "head": cell.head,
                "start": "imagenet" if results[cell.name]["run"]["recipe"]["init"] != "none" else "random",
                "cell": cell.name,
                **{key: whole[key] for key in ("lesions", "auc", "accuracy_at_half", "confusion")},
                "paper": _paper(cell),
            }
        )
    first = results[cells[0].name]
    return {"split": first["split"], "patients": first["patients"], "remarks": first["remarks"], "rows": rows}


def _paper(cell: Cell) -> dict[str, float]:
    """Return the paper's figures for a cell, in per cent; empty if it reports none."""
    if not cell.transfer:
        return {}
    if cell.head == "optimised":
        return dict(zip(("accuracy", "auc"), TABLE_2[cell.network], strict=True))
    return {"accuracy": TABLE_1[cell.network][0]} if cell.network in TABLE_1 else {}


def _write_report(
    path: Path, cells: Sequence[Cell], results: dict[str, dict[str, Any]], summary: dict[str, Any]
) -> None:
    split = summary["split"]
    parts = [
        html_report.table(
            ("", ""),
            [("split", split["how"])]
            + [(side, f"{split[side]} lesions, {summary['patients'][side]} patients") for side in summary["patients"]],
        ),
        *(html_report.note(text) for text in summary["remarks"]),
        "<p>Ours: per cent with 95 % bootstrap intervals over patients, accuracy at a probability of 0.5. The paper "
        "gives no intervals; its validation shared lesions with its training set.</p>",
        html_report.heading("Table 1: accuracy without and with the optimised head"),
        _table_1(summary["rows"]),
        html_report.heading("Table 2: the networks with the optimised head"),
        _table_2(summary["rows"]),
    ]
    logs = {row["start"]: results[row["cell"]]["log"] for row in _pair(summary["rows"])}
    if len(logs) == 2:
        parts += [html_report.heading("Fig. 8: ImageNet start against random start"), curves(logs)]
    shown = _shown(summary["rows"])
    parts += [
        html_report.heading("Fig. 9: confusion matrix of the test set"),
        html_report.confusion_table(f"{shown['network']}, {shown['head']} head", shown["confusion"]),
    ]
    html_report.write_page(path, "The paper's grid", parts)


def _table_1(rows: list[dict[str, Any]]) -> str:
    by_head = {(row["network"], row["head"]): row for row in rows if not row["cell"].endswith("random")}
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        paper = TABLE_1.get(network, ("-", "-"))
        ours = [_percent(by_head.get((network, head)), "accuracy_at_half") for head in HEADS]
        lines.append((network, ours[0], paper[0], ours[1], paper[1]))
    return html_report.table(("network", "plain, ours", "plain, paper", "optimised, ours", "optimised, paper"), lines)


def _table_2(rows: list[dict[str, Any]]) -> str:
    lines = [
        (
            row["network"],
            _percent(row, "accuracy_at_half"),
            row["paper"]["accuracy"],
            _percent(row, "auc"),
            row["paper"]["auc"],
        )
        for row in rows
        if row["head"] == "optimised" and row["paper"]
    ]
    return html_report.table(("network", "accuracy, ours", "accuracy, paper", "AUC, ours", "AUC, paper"), lines)


def _pair(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the run from random weights and its counterpart."""
    without = next((row for row in rows if row["cell"].endswith("random")), None)
    return (
        []
        if without is None
        else [row for row in rows if (row["network"], row["head"]) == (without["network"], without["head"])]
    )


def _shown(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return Xception-C with the optimised head, else the last run with transfer."""
    transfer = [row for row in rows if not row["cell"].endswith("random")] or rows
    return next((r for r in transfer if (r["network"], r["head"]) == ("xception_c", "optimised")), transfer[-1])


def _percent(row: dict[str, Any] | None, key: str) -> str:
    if row is None:
        return "-"
    figure = row[key]
    if math.isnan(figure["low"]):
        return f"{100 * figure['value']:.2f} (too few for an interval)"
    return f"{100 * figure['value']:.2f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"
