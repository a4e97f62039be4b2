"""Latency of one convolution against its width: docs/why/staircase.json and .svg.

Run: .venv/bin/python scripts/staircase.py [--widths 8 128] [--draw]
Each width is measured beside the widest, interleaved, on ONNX Runtime, one thread. `--draw` draws
the figures that are kept, without measuring.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import nn

from autoprune.measuring import measure
from autoprune.measuring.timing.subprocesses import machine
from autoprune.target import Target
from autoprune.task import Inputs

FOLDER = Path(__file__).parent.parent / "docs" / "why"
INPUTS, SIZE, STEP = 32, 28, 1


def net(width: int) -> nn.Module:
    """One 3x3 convolution to so many channels, and back to one."""
    return nn.Sequential(
        nn.Conv2d(INPUTS, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 1)
    ).eval()


def measured(low: int, high: int) -> dict[str, object]:
    """The ratio of each width's latency to the widest's."""
    inputs, target = Inputs.of(torch.randn(2, INPUTS, SIZE, SIZE)), Target()
    widest = measure.artefact(net(high), inputs, target)
    rows = []
    for width in range(low, high + 1, STEP):
        artefact = measure.artefact(net(width), inputs, target)
        latency = measure.time_artefact(artefact, widest, inputs.rows(1), target, budget_s=0.2)
        rows.append(
            {
                "width": width,
                "ratio": latency.ratio,
                "low": latency.ratio_low,
                "high": latency.ratio_high,
            }
        )
    return {
        "machine": machine(),
        "runtime": "onnxruntime, one thread",
        "inputs": INPUTS,
        "size": SIZE,
        "rows": rows,
    }


def drawn(record: dict[str, object]) -> str:
    """The figures as SVG: latency as points, what multiplications alone would say as a line."""
    rows: list[dict[str, float]] = record["rows"]  # type: ignore[assignment]
    high, top = rows[-1]["width"], max(row["ratio"] for row in rows) * 1.05

    def at(width: float, ratio: float) -> str:
        return f"{50 + 560 * width / high:.1f},{260 - 230 * ratio / top:.1f}"

    points = " ".join(at(row["width"], row["ratio"]) for row in rows)
    ticks = "".join(
        f'<text x="{50 + 560 * width / high:.1f}" y="280" text-anchor="middle">{width}</text>'
        f'<line x1="{50 + 560 * width / high:.1f}" y1="260" x2="{50 + 560 * width / high:.1f}" '
        'y2="264"/>'
        for width in range(0, int(high) + 1, 16)
    )
    sides = "".join(
        f'<text x="44" y="{264 - 230 * share / top:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 310" font-size="12"
 font-family="sans-serif"
 role="img" aria-label="Latency of a convolution against its width: a staircase">
<rect width="640" height="310" fill="white"/>
<g stroke="#444" fill="#444" stroke-width="0.5">{ticks}{sides}
<line x1="50" y1="260" x2="620" y2="260"/><line x1="50" y1="20" x2="50" y2="260"/></g>
<polyline points="{at(0, 0)} {at(high, 1)}" fill="none" stroke="#999" stroke-dasharray="4 4"/>
<polyline points="{points}" fill="none" stroke="#1565c0" stroke-width="2"/>
<text x="335" y="302" text-anchor="middle">channels</text>
<text x="70" y="36" fill="#1565c0">latency, of the widest</text>
<text x="70" y="54" fill="#777">what multiplications alone would say</text>
</svg>
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs=2, default=(8, 96), metavar=("LOW", "HIGH"))
    parser.add_argument("--draw", action="store_true", help="only draw what is kept")
    given = parser.parse_args()
    torch.manual_seed(0)
    kept = FOLDER / "staircase.json"
    if not given.draw:
        kept.write_text(json.dumps(measured(*given.widths), indent=1) + "\n")
    (FOLDER / "staircase.svg").write_text(drawn(json.loads(kept.read_text())))


if __name__ == "__main__":
    main()
