"""An evaluation as one HTML page without scripts or outside files."""

import html
from collections.abc import Mapping
from typing import Any, Final

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;
color:#1c1917;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .75rem;border-bottom:1px solid #e7e5e4;text-align:right}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #a8a29e}
small{color:#78716c}.plots{display:flex;flex-wrap:wrap;gap:1rem}.plots svg{max-width:100%;
height:auto}.scroll{overflow-x:auto}
"""
_NAMES: Final = {
    "auc": "AUC",
    "eer": "Equal error rate",
    "average_precision": "Average precision",
    "log_loss": "Log loss",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "expected_calibration_error": "Expected calibration error",
}


def metric_title(name: str) -> str:
    """Returns a metric's name as people write it."""
    if name in _NAMES:
        return _NAMES[name]
    if name.startswith("tpr_at_fpr_"):
        return f"TPR at FPR {float(name.removeprefix('tpr_at_fpr_')):.1%}"
    recall = name.removeprefix("log_weighted_precision_at_recall_")
    return f"Log weighted precision at recall {recall}"


def _begin(title: str) -> str:
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
    )


def build_robustness_page(document: Mapping[str, Any], plot: bytes) -> str:
    """Returns the page of a grid of distortions.

    Args:
        document: what `pipelines.robustness.Robustness.to_dict` returns.
        plot: the heat map, an SVG file.
    """
    clean, *cells = document["cells"]
    impute = document["imputed_score"]
    facts = [
        f"{clean['num_fake']:,} fake and {clean['num_real']:,} real videos in "
        f"{clean['num_groups']:,} groups"
        + (f", of split {html.escape(document['split'])}" if document["split"] else ""),
        "videos without a score left out"
        if impute is None
        else f"videos without a score counted as {impute:g}",
        "intervals: 95 % of resamples of whole groups (identities)",
        "distortions and levels of DeeperForensics-1.0, applied to decoded frames",
    ]
    rows: dict[str, str] = {}
    levels = sorted({cell["level"] for cell in cells})
    for cell in cells:
        name = html.escape(cell["distortion"])
        rows[name] = rows.get(name, "") + _cell(cell)
    body = "".join(f"<tr><td>{name}</td>{_cell(clean)}{row}</tr>" for name, row in rows.items())
    head = "".join(f"<th>{level}</th>" for level in levels)
    table = (
        f"<table><thead><tr><th></th><th>none</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
    parts = [
        _begin(f"Robustness on {html.escape(document['input'])}"),
        f"<p>{'; '.join(facts)}.</p>",
        f"<div class='plots'>{_inline(plot)}</div>",
        "<h2>AUC by distortion and level</h2>",
        f"<div class='scroll'>{table}</div>",
        "</body></html>",
    ]
    return "\n".join(parts)


def _cell(cell: Mapping[str, Any]) -> str:
    """Returns a cell of the table: parameter, AUC, interval, videos without a score."""
    lost = sum(sum(counts.values()) for counts in cell["without_score"].values())
    about = [] if cell["parameter"] is None else [f"parameter {cell['parameter']:g}"]
    about += [f"{lost:,} without a score"] if lost else []
    return f"<td>{_estimate(cell['auc'])}<br><small>{', '.join(about)}</small></td>"


def build_page(document: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """Returns the page.

    Args:
        document: what `pipelines.evaluate.Evaluation.to_dict` returns.
        plots: SVG files by name.
    """
    title = f"Evaluation of {html.escape(document['scores'])}"
    parts = [
        _begin(title),
        _facts(document),
        "<h2>Videos and frames</h2>",
        _metrics({name: document[name] for name in ("videos", "frames") if document[name]}),
        "<div class='plots'>",
        *(_inline(plot) for plot in plots.values()),
        "</div>",
    ]
    for name, slices in document["by"].items():
        parts += [f"<h2>By {html.escape(name)}</h2>", _metrics(slices)]
    if document["without_score"]:
        parts += ["<h2>Without a score</h2>", _unscored(document["without_score"])]
    return "\n".join([*parts, "</body></html>"])


def _facts(document: Mapping[str, Any]) -> str:
    impute = document["imputed_score"]
    facts = [
        f"{document['num_videos']:,} labelled videos"
        + (f" of split {html.escape(document['split'])}" if document["split"] else ""),
        f"accuracies at a threshold of {document['threshold']:g}",
        f"{document['num_unlabelled']:,} videos without a label left out",
        f"{document['num_absent']:,} labelled videos that were never scored",
        "videos without a score left out"
        if impute is None
        else f"videos without a score counted as {impute:g}",
        "intervals: 95 % of resamples of whole groups (identities)",
    ]
    return f"<p>{'; '.join(facts)}.</p>"


def _metrics(columns: Mapping[str, Mapping[str, Any]]) -> str:
    names = next(iter(columns.values()))["metrics"] if columns else {}
    head = "".join(
        f"<th>{html.escape(title)}<br><small>{each['num_fake']:,} fake, {each['num_real']:,} real, "
        f"{each['num_groups']:,} groups</small></th>"
        for title, each in columns.items()
    )
    rows = "".join(
        f"<tr><td>{metric_title(name)}</td>"
        + "".join(f"<td>{_estimate(each['metrics'][name])}</td>" for each in columns.values())
        + "</tr>"
        for name in names
    )
    return (
        f"<div class='scroll'><table><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _estimate(estimate: Mapping[str, float | None]) -> str:
    if estimate["value"] is None:
        return "–"
    text = f"{estimate['value']:.4f}"
    if estimate["low"] is not None:
        text += f" <small>{estimate['low']:.4f} … {estimate['high']:.4f}</small>"
    return text


def _unscored(statuses: Mapping[str, Mapping[str, int]]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(status)}</td><td>{counts.get('fake', 0):,}</td>"
        f"<td>{counts.get('real', 0):,}</td></tr>"
        for status, counts in statuses.items()
    )
    return (
        "<table><thead><tr><th>status</th><th>fake</th><th>real</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _inline(svg: bytes) -> str:
    """Returns a plot without what only a file of its own may begin with."""
    text = svg.decode()
    return text[text.index("<svg") :]
