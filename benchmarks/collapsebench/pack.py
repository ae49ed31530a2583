"""Records of trials as Parquet files that explain themselves: one row per report, the trials' table as metadata.

A file holds `PART` trials, so that each stays below a megabyte; `analysis.curves.read_curves` reads one of them, or all
in a folder. Metrics are float32 (null: not reported, NaN: not finite).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.collapsebench.family import Family
from benchmarks.collapsebench.truth import truth_of
from buttress.analysis.curves import COLLAPSEBENCH
from buttress.errors import BadInput

PART = 100
INTEGERS = ("trial", "epoch", "step", "full_beta_epochs", "full_beta_steps", "phase")


def pack(family: Family, folder: Path, out: Path) -> list[Path]:
    """Writes `<family>-<part>.parquet` from the records in `folder`; earlier parts of the family are replaced."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*.json"))]
    if not records:
        raise BadInput("no trial has been run yet", where=folder)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{family.name}-*.parquet"):
        old.unlink()
    written = []
    for number, first in enumerate(range(0, len(records), PART)):
        path = out / f"{family.name}-{number}.parquet"
        write(path, family, records[first : first + PART])
        written.append(path)
    return written


def write(path: Path, family: Family, records: Sequence[dict[str, Any]]) -> None:
    from buttress.training.registry import load

    spec = family.spec()
    first = spec.objectives[0]
    direction = first.direction or load(family.name).metrics[first.metric].direction
    trials = []
    for record in records:
        kept = {key: value for key, value in record.items() if key != "reports"}
        seconds = record["reports"][-1]["cpu_s"] if record["reports"] else 0.0
        steps = record["reports"][-1]["step"] if record["reports"] else 0
        trials.append({**kept, "cpu_s": seconds, "steps": steps, **truth_of(record, family, first.metric, direction)})
    about = {
        "family": family.name,
        "objective": first.metric,
        "direction": direction,
        "min_steps": family.min_steps,
        "spec": spec.to_dict(),
        "trials": trials,
    }
    table = _table([{**report, "trial": record["trial"]} for record in records for report in record["reports"]])
    table = table.replace_schema_metadata({COLLAPSEBENCH: json.dumps(about, allow_nan=False).encode()})
    floats = [field.name for field in table.schema if pa.types.is_float32(field.type)]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name in table.column_names if name not in floats],
        use_byte_stream_split=floats,
    )


def _table(reports: Sequence[dict[str, Any]]) -> pa.Table:
    columns: dict[str, pa.Array] = {name: pa.array([r[name] for r in reports], pa.int32()) for name in INTEGERS}
    columns["closing"] = pa.array([bool(report["closing"]) for report in reports])
    columns["cpu_s"] = pa.array(np.array([report["cpu_s"] for report in reports], np.float32))
    for name in sorted({name for report in reports for name in report["metrics"]}):
        values = [_value(report, name) for report in reports]
        columns[name] = pa.array([None if value is None else np.float32(value) for value in values], pa.float32())
    return pa.table(columns)


def _value(report: dict[str, Any], name: str) -> float | None:
    """None where the metric was not reported, NaN where it was not finite."""
    if name not in report["metrics"]:
        return None
    value = report["metrics"][name]
    return math.nan if value is None or name in report["nonfinite"] else float(value)


def overview(paths: Sequence[Path]) -> dict[str, Any]:
    """What the files hold: trials, shares, core-seconds."""
    trials = [
        trial
        for path in paths
        for trial in json.loads(pq.read_schema(path).metadata[COLLAPSEBENCH])["trials"]
    ]
    once = [trial for trial in trials if trial["trial"] == trial["configuration"]]
    counts = {name: sum(trial["truth"] == name for trial in once) for name in sorted({t["truth"] for t in once})}
    return {
        "configurations": len(once),
        "trials": len(trials),
        "truth": counts,
        "late_bloomers": sum(trial["late_bloomer"] for trial in once),
        "recoverers": sum(trial["recoverer"] for trial in once),
        "median_cpu_s": statistics.median(trial["cpu_s"] for trial in trials),
        "cpu_hours": sum(trial["cpu_s"] for trial in trials) / 3600,
        "mib": [round(path.stat().st_size / 2**20, 2) for path in paths],
    }
