"""Plots of a detector's scores as SVG, drawn by matplotlib without a screen."""

import io
from collections.abc import Callable, Mapping
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from effnet_batch.evaluation.bootstrap import Estimate
from effnet_batch.evaluation.labels import FAKE
from effnet_batch.evaluation.metrics import Detections

_SIZE_INCHES: Final = (4.6, 4.0)
_SMALLEST_RATE: Final = 1e-3
_SETTINGS: Final[dict[Any, Any]] = {
    # The same input gives the same file.
    "svg.hashsalt": "effnet_batch",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_FAKE_COLOUR: Final = "#c2410c"
_REAL_COLOUR: Final = "#0369a1"
_BRIGHT_AUC: Final = 0.8
"""Above, the colour map is bright enough for black letters."""


def draw_plots(detections: Detections, *, threshold: float) -> dict[str, bytes]:
    """Returns SVG files by name: ``roc``, ``precision_recall``, ``reliability``, ``histogram``.

    The first two need both classes and are left out without.
    """
    plots: dict[str, Callable[[Axes, Detections, float], None]] = {}
    if len(np.unique(detections.labels)) == 2:
        plots |= {"roc": _roc, "precision_recall": _precision_recall}
    plots |= {"reliability": _reliability, "histogram": _histogram}
    with mpl.rc_context(_SETTINGS):
        return {name: _draw(plot, detections, threshold) for name, plot in plots.items()}


def draw_heat_map(rows: Mapping[str, Mapping[int, Estimate]], *, clean: Estimate) -> bytes:
    """Returns an SVG file of a grid of AUCs, from chance to perfect.

    Args:
        rows: distortion, then level; every cell that was measured.
        clean: without a distortion.
    """
    levels = sorted({level for row in rows.values() for level in row})
    values = np.full((len(rows), len(levels)), np.nan)
    with mpl.rc_context({**_SETTINGS, "axes.grid": False}):
        size = (1.9 + 0.95 * len(levels), 1.2 + 0.55 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for down, row in enumerate(rows.values()):
            for across, level in enumerate(levels):
                each = row.get(level)
                if each is None or each.value is None:
                    continue
                values[down, across] = each.value
                text = f"{each.value:.3f}"
                if each.low is not None:
                    text += f"\n{each.low:.2f} … {each.high:.2f}"
                colour = "black" if each.value > _BRIGHT_AUC else "white"
                axes.text(across, down, text, ha="center", va="center", fontsize=7, color=colour)
        image = axes.imshow(values, vmin=0.5, vmax=1, cmap="viridis", aspect="auto")
        figure.colorbar(image, ax=axes, label="AUC", extend="min")
        undistorted = "–" if clean.value is None else f"{clean.value:.3f}"
        axes.set(
            title=f"AUC; undistorted {undistorted}",
            xlabel="level",
            xticks=range(len(levels)),
            xticklabels=[str(level) for level in levels],
            yticks=range(len(rows)),
            yticklabels=list(rows),
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _svg(figure)


def _draw(
    plot: Callable[[Axes, Detections, float], None], detections: Detections, threshold: float
) -> bytes:
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    plot(figure.add_subplot(), detections, threshold)
    return _svg(figure)


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _roc(axes: Axes, detections: Detections, threshold: float) -> None:
    curve = detections.curve()
    rate = np.append(0, curve.false_positive_rate)
    axes.step(
        np.maximum(rate, _SMALLEST_RATE), np.append(0, curve.recall), where="post", color="black"
    )
    chance = np.geomspace(_SMALLEST_RATE, 1)
    axes.plot(chance, chance, "--", color="grey", linewidth=1)
    axes.set(
        title="ROC",
        xlabel="reals called fake (log scale)",
        ylabel="fakes found",
        xscale="log",
        xlim=(_SMALLEST_RATE, 1),
        ylim=(0, 1.02),
    )


def _precision_recall(axes: Axes, detections: Detections, threshold: float) -> None:
    curve = detections.curve()
    axes.step(curve.recall, curve.precision, where="pre", color="black")
    share = detections.labels.mean()
    axes.axhline(share, linestyle="--", color="grey", linewidth=1)
    axes.set(
        title="Precision and recall",
        xlabel="fakes found",
        ylabel="fakes among those called fake",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )


def _reliability(axes: Axes, detections: Detections, threshold: float) -> None:
    filled, score, fakes = detections.reliability()
    has_some = filled > 0
    size = 15 + 150 * filled[has_some] / filled.max()
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    axes.plot(score[has_some], fakes[has_some], color="black", linewidth=1)
    axes.scatter(score[has_some], fakes[has_some], s=size, color="black", alpha=0.6)
    axes.set(
        title="Reliability",
        xlabel="mean score of a bin",
        ylabel="share of fakes",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )


def _histogram(axes: Axes, detections: Detections, threshold: float) -> None:
    edges = np.linspace(0, 1, 41).tolist()
    is_fake = detections.labels == FAKE
    axes.hist(detections.scores[~is_fake], edges, alpha=0.6, color=_REAL_COLOUR, label="real")
    axes.hist(detections.scores[is_fake], edges, alpha=0.6, color=_FAKE_COLOUR, label="fake")
    axes.axvline(threshold, linestyle="--", color="grey", linewidth=1)
    axes.legend(frameon=False)
    axes.set(title="Scores", xlabel="score", ylabel="videos", xlim=(0, 1))
