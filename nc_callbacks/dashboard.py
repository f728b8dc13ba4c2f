"""A W&B workspace for runs of the callbacks: `python -m nc_callbacks.dashboard --entity TEAM --project PROJECT`.

The page's sections: NC1, NC2, NC3, NC4, W–M̄, SQI and Spectrum with a panel for each group of metrics over epochs,
Depth with ``--layers`` (last values layer by layer), Training, Classes (figures and per-class tables), and one that
compares the runs of a sweep. ``--dry-run`` prints the
workspace as JSON and needs neither network nor account.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nc_callbacks.metrics import METRICS, LogKey, Panel, sections
from nc_callbacks.metrics.depth import OF_DEPTH

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

COMPARED = (
    ("val", "accuracy"),
    *(("train", name) for name in ("nc1", "nc3", "nc4", "wm_cosine", "accuracy_centred_means")),
)
"""Split and name of the metrics by which the sweep's section compares runs."""


def workspace(
    entity: str,
    project: str,
    name: str = "Neural collapse",
    prefix: str = "nc",
    splits: Sequence[str] = ("train", "val"),
    layers: Sequence[str] = (),
    parameters: Sequence[str] = ("data.name", "model.activation", "seed"),
    on_demand: bool = False,
    training: Sequence[str] = ("loss", "accuracy"),
) -> Workspace:
    """The workspace, not yet saved.

    Args:
        entity: W&B user or team.
        project: W&B project.
        name: What the workspace is called.
        prefix: First part of the log keys.
        splits: Splits that are logged.
        layers: Further layers that are logged.
        parameters: Parts of the runs' configuration that a sweep varies.
        on_demand: Also show what is logged only where it is asked for, such as ``nc5``.
        training: What the module itself logs of each split, such as ``train/loss``.

    Returns:
        A workspace; its ``save()`` writes it to W&B.

    Raises:
        ModuleNotFoundError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("The dashboard needs wandb-workspaces: pip install wandb-workspaces.") from error

    def lines(panel: Panel, layer: str) -> Any:
        keys: list[Any] = [
            str(LogKey(metric.name, split, layer, prefix=prefix))
            for metric in panel.metrics
            for split in splits
            if metric.is_logged(split, at_layer=bool(layer)) and (on_demand or not metric.on_demand)
        ]
        title = f"{panel.title}, {layer}" if layer else panel.title
        return wr.LinePlot(title=title, x="epoch", y=keys, log_y=panel.log, title_y=panel.unit) if keys else None

    shown = []
    for section in sections():
        panels = [lines(panel, layer) for layer in ("", *layers) for panel in section.panels]
        shown.append(ws.Section(name=section.title, panels=[panel for panel in panels if panel], is_open=True))
    if len(layers) > 1:
        deep = [
            wr.BarPlot(title=f"{METRICS[name].title}, {split}, layer by layer", metrics=over_depth)
            for name in OF_DEPTH
            for split in splits
            if (over_depth := _over_depth(name, split, layers, prefix, on_demand))
        ]
        drawn = [
            wr.MediaBrowser(title=f"Over depth, {split}", media_keys=[f"figures/depth_{split}"]) for split in splits
        ]
        shown.append(ws.Section(name="Depth", panels=[*deep, *drawn], is_open=True))
    if training:
        panels = [wr.LinePlot(title=name, x="epoch", y=[f"{split}/{name}" for split in splits]) for name in training]
        shown.append(ws.Section(name="Training", panels=panels, is_open=True))
    pictures = wr.MediaBrowser(title="Figures", media_keys=["figures/summary"])
    tables = [f"{prefix}/{split}/per_class" for split in splits]
    of_classes = [wr.MediaBrowser(title=key, media_keys=[key]) for key in tables]
    shown.append(ws.Section(name="Classes", panels=[pictures, *of_classes], is_open=True))
    compared = [str(LogKey(name, split, prefix=prefix)) for split, name in COMPARED if split in splits]
    columns = [wr.Config(name) for name in parameters] + [wr.SummaryMetric(key) for key in compared]
    comparison: list[Any] = [
        wr.ParallelCoordinatesPlot(
            title="From configuration to collapse",
            columns=[wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns],
        ),
        *(wr.BarPlot(title=key, metrics=[key]) for key in compared),
        wr.RunComparer(diff_only="split"),
    ]
    shown.append(ws.Section(name="Sweep", panels=comparison, is_open=True))
    settings = ws.WorkspaceSettings(x_axis="epoch")
    return ws.Workspace(entity=entity, project=project, name=name, sections=shown, settings=settings)


def _over_depth(name: str, split: str, layers: Sequence[str], prefix: str, on_demand: bool) -> list[Any]:
    """Log keys of a metric at each layer, the classifier's input last, as far as it is logged."""
    metric = METRICS[name]
    if (metric.on_demand and not on_demand) or not metric.is_logged(split, at_layer=True):
        return []
    return [str(LogKey(name, split, layer, prefix=prefix)) for layer in (*layers, "")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Save the workspace, or print it.

    Returns:
        0, or 1 where a package or an account is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m nc_callbacks.dashboard", description=__doc__)
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", required=True, help="W&B project")
    parser.add_argument("--name", default="Neural collapse", help="what the workspace is called")
    parser.add_argument("--prefix", default="nc", help="first part of the log keys")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="splits that are logged")
    parser.add_argument("--layers", nargs="+", default=[], help="further layers that are logged, in order")
    parser.add_argument(
        "--parameters", nargs="+", default=["data.name", "model.activation", "seed"], help="what a sweep varies"
    )
    parser.add_argument(
        "--training", nargs="*", default=["loss", "accuracy"], help="what the module itself logs of each split"
    )
    parser.add_argument("--on-demand", action="store_true", help="also what is logged only on demand, such as nc5")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the workspace as JSON, without network or account"
    )
    given = vars(parser.parse_args(arguments))
    dry_run = given.pop("dry_run")
    try:
        made = workspace(**given)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    if dry_run:
        print(json.dumps(made._spec, indent=2, ensure_ascii=False))
        return 0
    from wandb.errors import Error

    try:
        made.save()
    except Error as error:
        print(f"The workspace was not saved: {error} (--dry-run prints it without an account.)", file=sys.stderr)
        return 1
    print(made.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
