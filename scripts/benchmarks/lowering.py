"""What zeros are worth on torch's eager CPU kernels: each layer dense against sparse, and what
lowering makes of it.

Run: .venv/bin/python -m scripts.benchmarks.lowering [--out lowering.jsonl] [--threads 1] [--quick]
[--table]
                                                    [--figure FILE]
A line of JSON is written for each layer, sparsity and pattern of zeros; the same command again goes
on with what is missing, `--table` only prints. Speeds are medians over dense, interleaved. What
lowering chose is measured once more
afterwards: `again` must not be over 1.02. Break-even is where CSR is as fast as dense, between two
sparsities.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.measuring import measure
from autoprune.measuring.sparse_kernels.lower import lower
from autoprune.target import Target
from autoprune.task import Inputs

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
TOKENS = (1, 16, 197)
SLOWEST = 1.02  # of dense, that a chosen kernel may take when it is measured again


class Block(nn.Module):
    """A pre-norm Transformer block, its projections linear layers; (N, T, 768) -> (N, T, 768)."""

    def __init__(self, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.projection(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        )
        return x + self.mlp(self.norm2(x))


@dataclass(frozen=True)
class Case:
    """One model and one input; `side` is that of the tiles in which its zeros lie."""

    name: str
    shape: tuple[int, ...]
    sparsity: float
    side: int = 1

    @property
    def key(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape))} {self.sparsity:g} tiles {self.side}"

    def build(self) -> nn.Module:
        """The model in eval mode, with zeros in the weight of every linear layer and
        convolution."""
        kind, *sizes = self.name.split()
        model: nn.Module
        if kind == "block":
            model = Block()
        elif kind == "mlp":
            model = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
        elif kind == "linear":
            inputs, outputs = (int(size) for size in sizes[0].split("x"))
            model = nn.Sequential(nn.Linear(inputs, outputs))
        else:
            window = 1 if kind == "conv1x1" else 3
            channels = int(sizes[0].partition("@")[0])
            model = nn.Sequential(nn.Conv2d(channels, channels, window, padding=window // 2))
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                zero(module.weight, self.sparsity, self.side)
        return model.eval()


@torch.no_grad()
def zero(weight: Tensor, sparsity: float, side: int) -> None:
    """Set that share of `weight` to zero, in random tiles."""
    flat = weight.view(len(weight), -1)
    rows, columns = flat.shape[0] // side, flat.shape[1] // side
    gone = torch.randperm(rows * columns)[: round(sparsity * rows * columns)]
    keep = torch.ones(rows * columns, dtype=torch.bool)
    keep[gone] = False
    flat.mul_(keep.view(rows, columns).repeat_interleave(side, 0).repeat_interleave(side, 1))


def cases(quick: bool) -> Iterator[Case]:
    """Whole models first, then layers with scattered zeros, then linear layers with zeros in
    tiles."""
    for name in ("mlp", "block"):
        for tokens in TOKENS:
            yield Case(name, (1, tokens, 768), 0.9)
    linear = {"linear 768x3072": 768, "linear 4096x1024": 4096}
    for sparsity in (0.9,) if quick else SPARSITIES:
        for name, width in linear.items():
            for tokens in TOKENS:
                yield Case(name, (1, tokens, width), sparsity)
        for kind in ("conv1x1", "conv3x3"):
            for channels, size in ((64, 56), (256, 14), (512, 7)):
                yield Case(f"{kind} {channels}@{size}", (1, channels, size, size), sparsity)
    for side in () if quick else (4, 16, 32):
        for tokens in TOKENS:
            yield Case("linear 768x3072", (1, tokens, 768), 0.9, side)


def run(case: Case, target: Target) -> dict[str, Any]:
    """The record of one case: what each kernel took, what was chosen, and the chosen measured
    again."""
    torch.manual_seed(0)
    model, inputs = case.build(), Inputs.of(torch.randn(case.shape))
    begin = time.perf_counter()
    result = lower(model, inputs, target)
    seconds = time.perf_counter() - begin
    with torch.inference_mode():
        expected, found = inputs.call(model), inputs.call(result.model)
    again = (
        measure.time_artefact(result.model, model, inputs, target, budget_s=0.6)
        if result.used
        else None
    )
    return {
        "key": case.key,
        "case": f"{case.name}, {case.shape[1]} tokens" if len(case.shape) == 3 else case.name,
        "sparsity": case.sparsity,
        "side": case.side,
        "layers": [
            [each.layer, each.dense_ms, dict(each.tried or {}), each.kernel]
            for each in result.records
        ],
        "used": result.used,
        "ratio": result.ratio,
        "again": None if again is None else [again.ratio, again.ratio_low, again.ratio_high],
        "dense_ms": None if again is None or again.ratio is None else again.ms / again.ratio,
        "error": float((found - expected).abs().max() / expected.abs().max()),
        "seconds": seconds,
        "machine": f"torch {torch.__version__}, {target.threads} thread(s), "
        f"{torch.backends.cpu.get_cpu_capability()}",
    }


def speeds(record: dict[str, Any]) -> dict[str, float]:
    """Kernel -> how many times as fast as dense, of a case of one layer."""
    ((_, dense_ms, tried, _),) = record["layers"]
    return {kernel: dense_ms / ms for kernel, ms in tried.items()}


def break_even(records: list[dict[str, Any]]) -> str:
    """The sparsity at which CSR is as fast as dense, on a straight line through the logarithms of
    its neighbours."""
    points = sorted((record["sparsity"], math.log(speeds(record)["csr"])) for record in records)
    if points[0][1] >= 0:
        return f"under {points[0][0]:.0%}"
    for (low, a), (high, b) in itertools.pairwise(points):
        if a < 0 <= b:
            return f"{low + (high - low) * -a / (b - a):.0%}"
    return f"over {points[-1][0]:.0%}"


def table(records: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: scattered zeros, tiles, whole models, and what did not hold."""
    scattered = [each for each in records if len(each["layers"]) == 1 and each["side"] == 1]
    shares = sorted({each["sparsity"] for each in scattered})
    yield "Speed over dense of CSR, scattered zeros; * chosen by lowering\n"
    yield "| layer | " + " | ".join(f"{share:.0%}" for share in shares) + " | break-even |"
    yield "|---|" + "---:|" * (len(shares) + 1)
    for case in dict.fromkeys(each["case"] for each in scattered):
        mine = {each["sparsity"]: each for each in scattered if each["case"] == case}
        cells = [
            f"{speeds(mine[share])['csr']:.2f}{'*' if mine[share]['used'] else ''}"
            if share in mine
            else ""
            for share in shares
        ]
        yield f"| {case} | " + " | ".join(cells) + f" | {break_even(list(mine.values()))} |"
    yield "\nSpeed over dense by kernel, 90% zeros in tiles\n"
    yield "| layer | tiles | kernels | chosen |\n|---|---|---|---|"
    for each in (each for each in records if each["side"] > 1):
        kernels = ", ".join(f"{kernel} {speed:.2f}" for kernel, speed in speeds(each).items())
        chosen = each["layers"][0][3] if each["used"] else "dense"
        yield f"| {each['case']} | {each['side']}x{each['side']} | {kernels} | {chosen} |"
    yield (
        "\nWhole models, 90% scattered zeros in every linear layer, measured again after lowering\n"
    )
    yield (
        "| model | dense ms | speed over dense | 95 % interval | lowered layers "
        "|\n|---|---:|---:|---|---|"
    )
    for each in (each for each in records if len(each["layers"]) > 1):
        count = sum(kernel != "dense" for *_, kernel in each["layers"])
        ratio, low, high = each["again"] or (1.0, 1.0, 1.0)
        dense_ms = "" if each["dense_ms"] is None else f"{each['dense_ms']:.2f}"
        lowered = f"{count if each['used'] else 0} of {len(each['layers'])}"
        yield (
            f"| {each['case']} | {dense_ms} | {1 / ratio:.2f} | {1 / high:.2f} to "
            f"{1 / low:.2f} | {lowered} |"
        )
    yield from verdict(records)


def verdict(records: list[dict[str, Any]]) -> Iterator[str]:
    """Which of what must hold does not."""
    again = {each["key"]: each["again"][0] for each in records if each["again"]}
    slow = {key: ratio for key, ratio in again.items() if ratio > SLOWEST}
    yield (
        f"\n{len(again)} of {len(records)} cases were lowered; measured again the slowest takes "
        + (
            f"{max(again.values()):.3f} of dense; over {SLOWEST}: {slow or 'none'}"
            if again
            else "nothing"
        )
    )
    yield f"largest error of a lowered model: {max(each['error'] for each in records):.1e}"
    whole = [each for each in records if len(each["layers"]) > 1]
    short = [each["case"] for each in whole if not each["again"] or 1 / each["again"][0] < 1.5]
    yield f"whole models under 1.5 times as fast as dense: {', '.join(short) or 'none'}"
    yield f"measured on: {', '.join(sorted({each['machine'] for each in records}))}"


def figure(records: list[dict[str, Any]], path: Path) -> None:
    """Speed of CSR over sparsity, a line for each layer; needs matplotlib."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise SystemExit("--figure needs matplotlib: pip install matplotlib") from None
    drawing, axes = pyplot.subplots(figsize=(9, 6))
    scattered = [each for each in records if len(each["layers"]) == 1 and each["side"] == 1]
    for case in dict.fromkeys(each["case"] for each in scattered):
        points = sorted(
            (each["sparsity"], speeds(each)["csr"]) for each in scattered if each["case"] == case
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=case)
    axes.axhline(1, color="black")
    axes.set(xlabel="share of zeros", ylabel="speed over dense", yscale="log")
    axes.legend(fontsize=7)
    drawing.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("lowering.jsonl"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="whole models, and layers at 90 %% zeros alone"
    )
    parser.add_argument("--only", default="*", help="pattern on the keys of cases")
    parser.add_argument("--table", action="store_true", help="print what there is, measure nothing")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    records = [json.loads(line) for line in lines]
    target = Target("eager_sparse", runtime="eager_sparse", threads=given.threads)
    done = {record["key"] for record in records}
    for case in () if given.table else cases(given.quick):
        if case.key not in done and fnmatch.fnmatch(case.key, given.only):
            records.append(run(case, target))
            with given.out.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
            print(f"{case.key}: {records[-1]['seconds']:.1f} s", flush=True)
    if not records:
        raise SystemExit(f"{given.out} holds no results; run without --table first")
    print("\n".join(table(records)))
    if given.figure:
        figure(records, given.figure)


if __name__ == "__main__":
    main()
