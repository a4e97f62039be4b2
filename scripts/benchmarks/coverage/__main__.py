"""Which models can be pruned, how exactly and how fast, beside Torch-Pruning 1.6.1; needs the
`bench` extra.

Run:   .venv/bin/python -m scripts.benchmarks.coverage [--only PATTERN ...] [--tool TOOL] [--results
PATH]
                                                      [--limit-seconds 300] [--again] [--retry]
                                                      [--timing]
       .venv/bin/python -m scripts.benchmarks.coverage --table [--markdown] [--verbose]     the
       table and the bars .venv/bin/python -m scripts.benchmarks.coverage --flat
       memory over 200 candidates .venv/bin/python -m scripts.benchmarks.coverage --export [--only
       ...]  ONNX, torch.export, a training step

Every model runs in a fresh process per tool. Results are JSON lines; what is there is not run again
unless `--again`; `--retry` runs again what was not pruned; `--timing` takes the times again, of
both tools one after the other, and keeps the rest.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOOLS = ("autoprune", "torch_pruning")
FLAT = ("resnet18", "regnet_x_400mf")  # the second has grouped convolutions
Record = dict[str, Any]


def main() -> None:
    given = arguments()
    if given.child:
        child(given)
    elif given.table:
        from scripts.benchmarks.coverage import table

        table.show(load(given.results), given.markdown, given.verbose)
    elif given.flat:
        run_all(given, tuple(f"flat:{tool}" for tool in given.tool or TOOLS), list(FLAT))
    elif given.export:
        run_all(given, ("export",), [name for name in names(given.only) if exported(name)])
    else:
        run_all(given, tuple(given.tool or TOOLS), names(given.only))
    if not (given.child or given.table):
        from scripts.benchmarks.coverage import table

        table.show(load(given.results), given.markdown, given.verbose)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=["*"],
        help="patterns on model names: resnet*, hf/*, own/lstm_1",
    )
    parser.add_argument("--tool", nargs="+", choices=TOOLS)
    parser.add_argument("--results", type=Path, default=Path("runs/benchmark_coverage.jsonl"))
    parser.add_argument("--limit-seconds", type=float, default=300)
    parser.add_argument(
        "--memory-gib", type=float, default=16, help="address space of one measuring process"
    )
    for mode in ("again", "retry", "timing", "table", "markdown", "verbose", "flat", "export"):
        parser.add_argument(f"--{mode}", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    return parser.parse_args()


def names(patterns: list[str]) -> list[str]:
    from scripts.benchmarks.coverage.models import cases

    found = [
        case.name
        for case in cases()
        if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)
    ]
    if not found:
        sys.exit(
            f"no model matches {' '.join(patterns)}; models: "
            f"{', '.join(case.name for case in cases())}"
        )
    return found


def exported(name: str) -> bool:
    from scripts.benchmarks.coverage.models import case

    return case(name).export


def run_all(given: argparse.Namespace, tools: tuple[str, ...], wanted: list[str]) -> None:
    """Every wanted model with every tool, one process at a time."""
    done = load(given.results)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(wanted, 1):
        for tool in tools:
            before = done.get((name, tool))
            if given.timing and (before is None or before.get("status") != "pruned"):
                continue
            if before is not None and not (given.timing or again(before, given)):
                continue
            record = run_one(given, name, tool, before)
            with given.results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"[{position}/{len(wanted)}] {name:40} {tool:14} {shown(record)}", flush=True)


def again(before: Record, given: argparse.Namespace) -> bool:
    """What this script itself failed on is always run again."""
    done = ("pruned", "verified", "flat", "dense fails too")
    return bool(
        given.again or before["status"] == "error" or (given.retry and before["status"] not in done)
    )


def shown(record: Record) -> str:
    parts = [str(record.get("status", "timed")), f"{record['wall_s']:.0f} s"]
    for name, form in (
        ("removed", "removed {:.1%}"),
        ("error", "error {:.1g}"),
        ("apply_s", "apply {:.3f} s"),
        ("rss_mb", "MB {}"),
    ):
        if name in record:
            parts.append(form.format(record[name]))
    return ", ".join([*parts, *([record["reason"]] if "reason" in record else [])])


def run_one(given: argparse.Namespace, name: str, tool: str, before: Record | None) -> Record:
    """What a fresh process finds; what it had told before a time limit is kept."""
    start = time.monotonic()
    process = subprocess.Popen(
        command(tool, name, given, before),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=given.limit_seconds)
        ended = (
            ""
            if process.returncode == 0
            else f"the process ended with {process.returncode}: {last_line(err)}"
        )
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        ended = f"over {given.limit_seconds:.0f} s"
    record: Record = {"model": name, "tool": tool, "wall_s": time.monotonic() - start}
    for line in out.splitlines():
        if line.startswith("RESULT "):
            record |= json.loads(line.removeprefix("RESULT "))
    if ended and not given.timing:
        # this script's, so it is run again next time
        ours = process.returncode == 1 and "MemoryError" not in ended
        record = (
            {"status": "error" if ours else "failed", "reason": ended} | record | {"ended": ended}
        )
    return record


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""


def command(
    tool: str, name: str, given: argparse.Namespace, before: Record | None = None
) -> list[str]:
    found = [
        sys.executable,
        "-m",
        "scripts.benchmarks.coverage",
        "--child",
        tool,
        name,
        "--limit-seconds",
        str(given.limit_seconds),
    ]
    found += ["--memory-gib", str(given.memory_gib)]
    if given.timing:
        found += ["--timing", "--variant", str((before or {}).get("variant", ""))]
    return found


def environment() -> dict[str, str]:
    """One thread, timm's attention written out (as Torch-Pruning's example needs it), this checkout
    first."""
    root = str(Path(__file__).resolve().parents[3])
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
        "PYTHONWARNINGS": "ignore",
        "TIMM_FUSED_ATTN": "0",
    }


def load(path: Path) -> dict[tuple[str, str], Record]:
    """The newest figures by (model, tool); a line without a status (times taken again) adds to an
    earlier one."""
    found: dict[tuple[str, str], Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        key = record["model"], record["tool"]
        found[key] = record if "status" in record else found.get(key, {}) | record
    return found


def child(given: argparse.Namespace) -> None:
    tool, name = given.child
    most = int(given.memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if tool.startswith("flat:"):
        from scripts.benchmarks.coverage import flat

        flat.run(tool.removeprefix("flat:"), name)
        return
    from scripts.benchmarks.coverage.models import case

    if tool == "autoprune":
        from scripts.benchmarks.coverage import ours

        ours.measure(case(name), given.limit_seconds, given.timing)
    elif tool == "export":
        from scripts.benchmarks.coverage import export

        export.measure(case(name))
    else:
        from scripts.benchmarks.coverage import peer

        peer.measure(case(name), given.limit_seconds, given.variant)


if __name__ == "__main__":
    main()
