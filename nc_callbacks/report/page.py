"""The page's text in HTML: every string that comes from a run is escaped here."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template
from typing import Any
from urllib.parse import quote

from nc_callbacks.metrics import short
from nc_callbacks.report.findings import Finding, label, last_parts, of_run, of_sweep
from nc_callbacks.report.run import Run, keys_of, varying
from nc_callbacks.report.verdict import Verdict, verdicts

PAGE = "report.html"
"""Name of the page in its folder."""

PLOTLY = "plotly-cartesian.min.js"
"""plotly.js as published in the npm package plotly.js-cartesian-dist-min: a third of the whole, and as much faster."""

SCRIPTS = (
    "data.js",
    "address.js",
    "charts.js",
    "tools.js",
    "curves.js",
    "depth.js",
    "runs.js",
    "matrices.js",
    "looks.js",
    "main.js",
)

COLUMNS = (
    ("accuracy", "train", "accuracy, train"),
    ("accuracy", "val", "accuracy, val"),
    *((name, "train", name) for name in ("nc1", "nc2_etf", "nc3", "nc4", "wm_cosine")),
    ("accuracy_centred_means", "train", "accuracy, centred means"),
    ("sqi_ratio", "train", "sqi_ratio"),
    ("spectrum_effective_rank", "train", "effective rank"),
)
"""Name, split and heading of the final values in the table of runs."""


def render_page(runs: list[Run], sweep: bool, content: dict[str, Any]) -> str:
    """The whole page.

    Args:
        runs: The runs, in order.
        sweep: Whether they are the runs of a sweep.
        content: What the scripts read (see `nc_callbacks.report.payload.build_payload`).

    Returns:
        HTML that loads nothing from anywhere. Its content security policy admits its own scripts, by their hashes,
        and no request.
    """
    assets = files("nc_callbacks.report") / "assets"
    plotly, *scripts = [(assets / name).read_text(encoding="utf-8") for name in (PLOTLY, *SCRIPTS)]
    found = of_sweep(runs) if sweep else of_run(runs[0])
    own_scripts = _hashes([plotly, *scripts])
    return Template((assets / "page.html").read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {own_scripts}",
        title=escape(_title(runs, sweep)),
        style=(assets / "style.css").read_text(encoding="utf-8"),
        kind="sweep" if sweep else "run",
        eyebrow="Sweep" if sweep else "Run",
        facts=_facts(runs, sweep),
        verdict="" if sweep else _gauges(verdicts(runs[0])),
        findings=_findings(found),
        runs=_table(runs) if sweep else "",
        errors=_errors(runs),
        configuration="".join(_configuration(run, is_open=not sweep) for run in runs),
        payload=embedded(content),
        plotly=plotly,
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def embedded(content: Any) -> str:
    r"""JSON that can stand in a script element: no character of it can end the element.

    Example:
        >>> embedded({"name": "</script><b>"})
        '{"name":"\\u003c/script\\u003e\\u003cb\\u003e"}'
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hashes(scripts: Iterable[str]) -> str:
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _title(runs: list[Run], sweep: bool) -> str:
    if sweep:
        names = " × ".join(last_parts(varying(runs)))
        return f"{len(runs)} runs" + (f" over {names}" if names else "")
    data, model = runs[0].choice("data"), runs[0].choice("model")
    parts = [data.get("name"), str(model.get("_target_", "")).rsplit(".", 1)[-1], model.get("activation")]
    return " · ".join(str(part) for part in parts if part) or runs[0].name


def _facts(runs: list[Run], sweep: bool) -> str:
    seconds = [run.seconds for run in runs if run.seconds is not None]
    epochs = sorted({run.epochs for run in runs if run.epochs is not None})
    first = runs[0]
    facts: dict[str, Any] = {"Folder": first.folder.parent.name if sweep else first.folder.name}
    if epochs:
        facts["Epochs"] = str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    if seconds:
        facts["Time"] = duration(sum(seconds)) + (" in all" if sweep else "")
    for name in ("loss", "optimizer"):
        targets = dict.fromkeys(str(run.choice(name).get("_target_", "")).rsplit(".", 1)[-1] for run in runs)
        facts[name.capitalize()] = ", ".join(target for target in targets if target)
    if not sweep:
        facts["Status"] = "" if first.status == "finished" or first.has_no_end else first.status
        facts["Overrides"] = " ".join(f"{name}={value}" for name, value in first.overrides.items())
    versions = dict.fromkeys(item for run in runs for item in run.versions.items())
    facts["Versions"] = ", ".join(f"{name} {text}" for name, text in versions)
    pairs = (f"<div><dt>{escape(name)}</dt><dd>{escape(str(text))}</dd></div>" for name, text in facts.items() if text)
    return "".join(pairs)


def duration(seconds: float) -> str:
    """Seconds as a reader says them.

    Example:
        >>> duration(14.01), duration(754), duration(7510)
        ('14 s', '12 min 34 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _findings(found: list[Finding]) -> str:
    if not found:
        return "<p>No values of the callbacks were found in this folder.</p>"
    lines = (f"<li><b>{escape(finding.number)}</b> <span>{escape(finding.text)}</span></li>" for finding in found)
    return f"<ul class='findings'>{''.join(lines)}</ul>"


def _gauges(found: list[Verdict]) -> str:
    """A small gauge a condition: start, now, ideal, and how it is called."""
    return f"<ul class='gauges'>{''.join(map(_gauge, found))}</ul>" if found else ""


def _gauge(verdict: Verdict) -> str:
    rule, share = verdict.rule, round(100 * verdict.progress)
    start, now, ideal = map(short, (verdict.start, verdict.now, rule.ideal))
    kind = verdict.outcome.replace(" ", "-")
    return (
        f"<li class='{kind}'><p><a href='#{anchor(rule.condition)}'>{escape(rule.condition)}</a> "
        f"<b>{escape(verdict.outcome)}</b></p>"
        f"<div class='gauge' role='img' aria-label='{share} % of the way'><span style='width:{share}%'></span></div>"
        f"<p class='values'><code>{escape(rule.metric)}</code> {start} → <b>{now}</b> → {ideal}</p>"
        f"<p>{escape(rule.sentence)}</p></li>"
    )


def anchor(title: str) -> str:
    """The id of a section of curves.

    Example:
        >>> anchor("W–M̄"), anchor("NC1")
        ('curves-W–M̄', 'curves-NC1')
    """
    return f"curves-{title}"


def _table(runs: list[Run]) -> str:
    parameters = varying(runs)
    shown = {key: heading for column in COLUMNS for key, heading in _keys(runs, *column).items()}
    words, numbers = ["run", "outcome", *last_parts(parameters)], [*shown.values(), "seconds"]
    head = [f"<th aria-sort='none' scope='col'><button>{escape(title)}</button></th>" for title in words]
    head += [f"<th aria-sort='none' scope='col' class='number'><button>{escape(t)}</button></th>" for t in numbers]
    rows = []
    for index, run in enumerate(runs):
        cells = [f"<th scope='row'>{_name(run, index)}</th>", _cell(run.status)]
        cells += [_cell(run.overrides.get(name, "")) for name in parameters]
        cells += [_number(run.final.get(key)) for key in shown] + [_number(run.seconds)]
        rows.append(f"<tr class='{escape(run.status)}'>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _keys(runs: list[Run], name: str, split: str, heading: str) -> dict[str, str]:
    """The log keys of a column, one a loader, with their headings."""
    return {
        str(key): heading if key.loader is None else f"{heading}, loader {key.loader}"
        for key in keys_of(runs, name, split)
    }


def _name(run: Run, index: int) -> str:
    """A run's name: a button where there is something to show and hide, and a link where the run has a page."""
    name = escape(run.name)
    if run.final:
        name = f"<button class='name' data-run='{index}' aria-pressed='true'>{name}</button>"
    if (run.folder / PAGE).is_file():
        name += f" <a href='{escape(quote(run.name))}/{PAGE}'>page</a>"
    return name


def _errors(runs: list[Run]) -> str:
    lines = (f"<li><b>{escape(label(run, runs))}</b> {escape(run.error)}</li>" for run in runs if run.error)
    return f"<ul class='errors'>{''.join(lines)}</ul>"


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _number(value: float | None) -> str:
    if value is None:
        return "<td></td>"
    if not math.isfinite(value):
        return "<td class='number'>not finite</td>"
    return f"<td class='number' data-value='{value!r}'>{short(value, 4)}</td>"


def _configuration(run: Run, is_open: bool) -> str:
    text = run.config_text or "No .hydra/config.yaml in this folder."
    state = " open" if is_open else ""
    return f"<details{state}><summary>{escape(run.name)}</summary><pre>{escape(text)}</pre></details>"
