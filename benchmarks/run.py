"""How near the statistics and metrics are to the cost of doing nothing: one table, each row beside its goal.

`python benchmarks/run.py` (some ten minutes), `--quick`, `--only updates`, `--device cuda`, `--threads 1`;
`--markdown` prints the table of docs/performance.md, `--json FILE` keeps the figures with versions and machine. Times
are medians of pairs taken in turns; on a machine that does other work only the ratios by CPU time say something:
`--only fixed imports lasting many runs small`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import speed
import torch
from speed.measure import Options, Row
from speed.steps import announced
from tqdm import tqdm


def groups() -> dict[str, ModuleType]:
    """The modules of `speed` that have rows, by name."""
    modules = {
        info.name: importlib.import_module(f"speed.{info.name}") for info in pkgutil.iter_modules(speed.__path__)
    }
    return {name: module for name, module in sorted(modules.items()) if hasattr(module, "rows")}


def machine(options: Options) -> dict[str, object]:
    processor = platform.processor() or platform.machine()
    if options.device.type == "cuda":
        processor = torch.cuda.get_device_name(options.device)
    elif (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return {
        "device": options.device.type,
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": options.threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nc_callbacks": version("nc-callbacks"),
    }


def cells(row: Row) -> list[str]:
    verdict = {True: "yes", False: "no", None: ""}[row.met]
    goal = "" if row.goal is None else f"≤ {row.goal:.4g} {row.unit}".rstrip()
    return [row.group, row.what, f"{row.measured:.3g} {row.unit}".rstrip(), goal, verdict, row.detail]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs, smaller sizes")
    parser.add_argument("--only", nargs="+", choices=sorted(groups()), help="row groups to run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fashion-mnist", type=Path, help="folder with the four IDX files; else random images")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device is there: all rows run on the CPU.", file=sys.stderr)
        arguments.device = "cpu"
    options = Options(torch.device(arguments.device), arguments.quick, arguments.threads, arguments.fashion_mnist)

    start, end, between = ("| ", " |", " | ") if arguments.markdown else ("", "", "  ")
    widths = [0] * 6 if arguments.markdown else [36, 40, 12, 12, 4, 0]

    def show(line: list[str]) -> None:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        tqdm.write(start + between.join(padded) + end, file=sys.stdout)
        sys.stdout.flush()

    show(["what", "size", "measured", "goal", "met", ""])
    if arguments.markdown:
        show(["---"] * 6)
    found = []
    chosen = {name: module for name, module in groups().items() if not arguments.only or name in arguments.only}
    how_long = "about a minute a step" if not arguments.quick else "some twenty seconds a step"
    for name, module in announced(chosen.items(), f"{', '.join(chosen)}: {how_long}"):
        for row in module.rows(options):
            show(cells(row))
            found.append({"module": name, **asdict(row), "met": row.met})
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine(options), "rows": found}, indent=1, ensure_ascii=False)
        )


if __name__ == "__main__":
    main()
