"""The table of benchmarks/coverage and, under it, every bar: met, or missed and by what."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from scripts.benchmarks.coverage.models import Case, cases

Record = Mapping[str, Any]
Records = Mapping[tuple[str, str], Record]
Bar = tuple[str, list[str] | None, str]
TOOLS = ("autoprune", "torch_pruning")
RIGHT_PEER, RIGHT = 1e-4, 1e-5

COLUMNS: tuple[tuple[str, Callable[[Record], str]], ...] = (
    ("", lambda r: str(r.get("status", "-"))),
    (
        "groups",
        lambda r: (
            f"{r['prunable']} ({r['refused']})" if "refused" in r else str(r.get("prunable", ""))
        ),
    ),
    ("of params", lambda r: percent(r, "prunable_share")),
    ("removed", lambda r: percent(r, "removed")),
    ("error", lambda r: f"{r['error']:.0e}".replace("e-0", "e-") if "error" in r else ""),
    (
        "shapes",
        lambda r: (
            {True: "kept", False: "CHANGED"}.get(bool(r["shapes_kept"]), "")
            if "shapes_kept" in r
            else ""
        ),
    ),
    ("discover s", lambda r: f"{r['discovery_s']:.2f}" if "discovery_s" in r else ""),
    ("apply s", lambda r: f"{r['apply_s']:.3f}" if "apply_s" in r else ""),
    ("copies", lambda r: f"{r['apply_s'] / r['copy_s']:.1f}" if "apply_s" in r else ""),
    ("peak MB", lambda r: f"{r['peak_mb']:.0f}" if "peak_mb" in r else ""),
)
NOTE = """
groups: prunable (refused). copies: seconds over those of copy.deepcopy, interleaved in the same
process.
Torch-Pruning: constructor and step, without the deep copy that they need first, ranking included.
autoprune's apply: importance known, as in a search; with the ranking, and the discovery, see below
the bars.
One thread. Peak memory is that of the process before errors are measured, libraries included."""
PEER = ("", "removed", "error", "shapes", "apply s", "copies", "peak MB")


def percent(record: Record, name: str) -> str:
    return f"{record[name]:.1%}" if name in record else ""


def show(records: Records, markdown: bool, verbose: bool) -> None:
    """Print the table, the reasons, and the bars."""
    known = [
        case
        for case in cases()
        if (case.name, "autoprune") in records or (case.name, "torch_pruning") in records
    ]
    heads = [
        "model",
        *(name or "autoprune" for name, _ in COLUMNS),
        *(f"TP {name}".strip() for name in PEER),
    ]
    rows = [row(case, records) for case in known]
    print(*layout(heads, rows, markdown), sep="\n")
    print(NOTE)
    for tool in ("autoprune", "torch_pruning"):
        print(f"\nNot pruned by {tool}:")
        print(*(reasons(known, records, tool) or ["  none"]), sep="\n")
    if verbose:
        print("\nGroups refused by autoprune:")
        for case in known:
            for refusal in records.get((case.name, "autoprune"), {}).get("refusals", []):
                print(f"  {case.name}: {refusal}")
    whole = len(known) == len(cases())
    print("\nBars:" if whole else f"\nBars, over {len(known)} of {len(cases())} models so far:")
    for name, missed, figure in bars(known, records):
        verdict = "      " if missed is None else "MISSED" if missed else "met   "
        print(f"  {verdict} {name}: {figure}")
        shown = (missed or [])[: None if verbose else 12]
        for line in [
            *shown,
            *(
                [f"and {len(missed or []) - 12} more (--verbose)"]
                if len(missed or []) > len(shown)
                else []
            ),
        ]:
            print(f"           {line}")


def row(case: Case, records: Records) -> list[str]:
    ours, theirs = (records.get((case.name, tool), {}) for tool in ("autoprune", "torch_pruning"))
    shown = dict(COLUMNS)
    return [
        case.name,
        *(cell(ours) for _, cell in COLUMNS),
        *(shown[name](theirs) for name in PEER),
    ]


def layout(heads: list[str], rows: list[list[str]], markdown: bool) -> Iterator[str]:
    if markdown:
        yield f"| {' | '.join(heads)} |"
        yield f"|---|{'---|' * (len(heads) - 1)}"
        yield from (f"| {' | '.join(row)} |" for row in rows)
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for line in (heads, *rows):
        yield "  ".join(
            text.ljust(width) for text, width in zip(line, widths, strict=True)
        ).rstrip()


def reasons(known: Iterable[Case], records: Records, tool: str) -> list[str]:
    found = [(case.name, records.get((case.name, tool), {"status": "pruned"})) for case in known]
    return [
        f"  {name}: {record.get('reason', record.get('status'))}"
        for name, record in found
        if not pruned(record)
    ]


def pruned(record: Record) -> bool:
    return record.get("status") == "pruned"


def bars(known: list[Case], records: Records) -> Iterator[Bar]:
    """Every bar of the issue: its name, what misses it (None: no bar, a figure for comparison),
    what was reached."""
    both = [
        {c.name: records[c.name, tool] for c in known if (c.name, tool) in records}
        for tool in TOOLS
    ]
    ours, theirs = both
    family = {case.name: case.family for case in known}
    yield coverage(ours, family)
    yield classifiers(ours, family)
    yield from sequences(ours, family)
    yield errors(ours)
    yield shares(ours, theirs)
    yield from costs(ours, theirs)
    yield memory(records)
    yield exports(records)
    right = [name for name, record in theirs.items() if good(record)]
    wrong = [f"{name} {r['error']:.1e}" for name, r in theirs.items() if pruned(r) and not good(r)]
    yield (
        "Torch-Pruning pruned and right",
        None,
        f"{len(right)} of {len(theirs)} models; wrong: {', '.join(wrong) or 'none'}",
    )


def coverage(ours: Mapping[str, Record], family: Mapping[str, str]) -> Bar:
    names = [
        name for name in ours if family[name] in ("classification", "segmentation", "detection")
    ]
    missed = [f"{name}: {ours[name].get('reason', '')}" for name in names if not pruned(ours[name])]
    return (
        "every torchvision model pruned",
        missed,
        f"{len(names) - len(missed)} of {len(names)} (98 in the list)",
    )


def classifiers(ours: Mapping[str, Record], family: Mapping[str, str]) -> Bar:
    names = [name for name in ours if family[name] == "classification"]
    missed = [name for name in names if not ours[name].get("prunable")]
    return (
        "classifiers with a prunable group",
        missed,
        f"{len(names) - len(missed)} of {len(names)} (80 in the list)",
    )


def sequences(ours: Mapping[str, Record], family: Mapping[str, str]) -> Iterator[Bar]:
    kinds = ("recurrent", "transformer", "hugging face", "timm")
    names = [
        n
        for n in ours
        if family[n] in kinds or any(word in n for word in ("vit", "swin", "encoder"))
    ]
    missed = [f"{name}: {ours[name].get('reason', '')}" for name in names if not pruned(ours[name])]
    yield (
        "LSTM, GRU and every Transformer pruned",
        missed,
        f"{len(names) - len(missed)} of {len(names)}",
    )
    words = ("attn", "attention", "lstm", "gru", "rnn")
    refused = {
        n: [r for r in ours[n].get("refusals", []) if any(w in r.lower() for w in words)]
        for n in names
    }
    shown = [
        f"{name} ({len(reasons)}, as {reasons[0][:90]})"
        for name, reasons in refused.items()
        if reasons
    ]
    yield (
        "of these, with refused groups in attention or recurrence",
        None,
        "; ".join(shown) or "none",
    )


def errors(ours: Mapping[str, Record]) -> Bar:
    measured = {name: record["error"] for name, record in ours.items() if "error" in record}
    missed = [f"{name}: {error:.1e}" for name, error in measured.items() if not error <= RIGHT]
    missed += [
        f"{name}: shapes changed"
        for name, record in ours.items()
        if record.get("shapes_kept") is False
    ]
    missed += [
        f"{n}: not measured: {r.get('reason', '')}"
        for n, r in ours.items()
        if pruned(r) and "error" not in r
    ]
    missed += [
        f"{n}: the cut changes nothing, so this proves nothing"
        for n, r in ours.items()
        if r.get("effect", 1) < 1e-3
    ]
    worst = max(measured.values(), default=0)
    return (
        f"error <= {RIGHT:g} and shapes kept everywhere",
        missed,
        f"worst {worst:.1e} of {len(measured)} models",
    )


def shares(ours: Mapping[str, Record], theirs: Mapping[str, Record]) -> Bar:
    both = [name for name in ours if good(theirs.get(name, {}))]
    ratio = {name: ours[name].get("removed", 0) / theirs[name]["removed"] for name in both}
    missed = [
        f"{name}: {ours[name].get('removed', 0):.1%} against {theirs[name]['removed']:.1%} "
        f"({theirs[name]['variant']})"
        for name in both
        if ratio[name] < 0.95
    ]
    lowest = (
        f"lowest {min(ratio.values()):.2f}, median {statistics.median(ratio.values()):.2f}"
        if both
        else "nothing"
    )
    return (
        "share removed >= 0.95 x Torch-Pruning's where that is right",
        missed,
        f"{lowest} over {len(both)} models",
    )


def good(record: Record) -> bool:
    return (
        pruned(record) and record.get("error", 1) <= RIGHT_PEER and bool(record.get("shapes_kept"))
    )


def costs(ours: Mapping[str, Record], theirs: Mapping[str, Record]) -> Iterator[Bar]:
    """The bar is on applying a plan whose importance is known, as every candidate of a search but
    the first is."""
    for key, what in (("apply_s", "applying a plan"), ("apply_ranked_s", "ranking and applying")):
        copies = {
            name: record[key] / record["copy_s"] for name, record in ours.items() if key in record
        }
        if copies:
            middle, over = (
                statistics.median(copies.values()),
                sum(value > 2 for value in copies.values()),
            )
            worst = sorted(copies.items(), key=lambda item: -item[1])[:4]
            shown = ", ".join(f"{name} {value:.1f}" for name, value in worst)
            missed = [f"median {middle:.2f}"] if middle > 2 else []
            figure = f"median {middle:.2f}, {over} of {len(copies)} over 2; highest {shown}"
            yield f"{what} <= 2 deep copies (median)", missed if key == "apply_s" else None, figure
    yield from speeds(ours, theirs)


def speeds(ours: Mapping[str, Record], theirs: Mapping[str, Record]) -> Iterator[Bar]:
    """Against Torch-Pruning, in seconds and, since a machine is not equally busy each time, in deep
    copies."""
    both = [
        name
        for name, record in ours.items()
        if "apply_s" in record and "apply_s" in theirs.get(name, {})
    ]
    steps = {
        "apply_s": "applying",
        "apply_ranked_s": "ranking, applying",
        "once": "discovery, ranking, applying",
    }
    for key, what in steps.items() if both else ():
        faster = [theirs[name]["apply_s"] / seconds(ours[name], key) for name in both]
        load = [theirs[name]["copy_s"] / ours[name]["copy_s"] for name in both]
        middle, even = (
            statistics.median(faster),
            statistics.median(f / x for f, x in zip(faster, load, strict=True)),
        )
        missed = [f"{min(middle, even):.1f} times"] if min(middle, even) < 5 else []
        figure = (
            f"median {middle:.1f} times in seconds, {even:.1f} in deep copies, lowest "
            f"{min(faster):.1f}"
        )
        name = f"{what} >= 5 times faster than Torch-Pruning (median)"
        yield name, missed if key == "apply_s" else None, f"{figure}, over {len(both)} models"


def seconds(record: Record, key: str) -> float:
    return float(record["discovery_s"] + record["apply_ranked_s"] if key == "once" else record[key])


def memory(records: Records) -> Bar:
    flat = {
        f"{name} ({tool.removeprefix('flat:')})": r
        for (name, tool), r in records.items()
        if tool.startswith("flat:")
    }
    shown = [f"{name} {r['drift']:+.1%}" for name, r in flat.items() if "drift" in r]
    missed = [name for name, r in flat.items() if r.get("status") != "flat" and "autoprune" in name]
    return (
        "memory flat (5 %) over 200 candidates",
        missed or ([] if flat else ["not run: --flat"]),
        ", ".join(shown),
    )


def exports(records: Records) -> Bar:
    found = {name: record for (name, tool), record in records.items() if tool == "export"}
    good = ("verified", "dense fails too")
    missed = [
        f"{name}: {r.get('reason', r.get('status'))}"
        for name, r in found.items()
        if r.get("status") not in good
    ]
    neither = [name for name, record in found.items() if record.get("status") == "dense fails too"]
    figure = f"{len(found) - len(missed) - len(neither)} of {len(found)}"
    figure += f"; not even dense: {', '.join(neither)}" if neither else ""
    return (
        "ONNX, torch.export and a training step",
        missed or ([] if found else ["not run: --export"]),
        figure,
    )
