"""Files that earlier releases wrote must still load, with the same meaning."""

from __future__ import annotations

import json
from pathlib import Path

from autoprune.plan import Choice, Plan
from autoprune.score import Score

GOLDEN = Path(__file__).parent / "golden"


def test_a_plan_of_version_1_loads() -> None:
    plan = Plan.from_json(json.loads((GOLDEN / "plan_v1.json").read_text()))
    assert plan.choices == {
        "conv1:units": Choice("structured", 0.5, "l1"),
        "fc:weights": Choice("sparse", 0.9, "taylor"),
    }
    assert plan.digest == "789cf9926c3481ad"


def test_a_score_of_version_1_loads() -> None:
    score = Score.from_json(json.loads((GOLDEN / "score_v1.json").read_text()))
    assert (score.metric, score.params, score.latency_ratio_high, score.uncounted) == (
        0.9972,
        76458,
        0.263,
        ("aten::sort",),
    )
