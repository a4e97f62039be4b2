"""What a run keeps beside its journal: a folder for each trial on the front, front.json and
trials.csv."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from safetensors.torch import load_model
from torch import nn

from autoprune.errors import InputError
from autoprune.exporting import artefact
from autoprune.files import read_mapping
from autoprune.group import Group
from autoprune.plan import Plan
from autoprune.pruning.surgery.architecture import Architecture
from autoprune.pruning.widths import widths_of
from autoprune.run import Run, write_whole
from autoprune.score import Candidate, Score, pareto_front
from autoprune.searching.evaluating.baseline import save_weights
from autoprune.searching.evaluating.integrity import digests, intact
from autoprune.study import Study

__all__ = [
    "answering",
    "damaged_models",
    "exported_best",
    "front_record",
    "keep_model",
    "keep_result",
    "kept_model",
    "kept_result",
    "with_models",
    "worth_keeping",
    "write_front",
    "write_table",
]

# That a budget may limit
_QUANTITIES = ("metric", "latency", "flops", "params", "nonzero_params", "size")

_APART = ("uncounted", "unavailable", "resources")  # what is no single figure
_FIGURES = [name for name in Score().to_json() if name not in _APART]
_COLUMNS = [
    "trial",
    "state",
    "stage",
    "feasible",
    "reason",
    "origin",
    "seconds",
    *_FIGURES,
    "resources",
    "uncounted",
    "techniques",
    "widths",
    "plan",
]


def worth_keeping(candidate: Candidate, before: Sequence[Candidate], goal: str) -> bool:
    """Whether no earlier trial is as good in quality and in every cost: only then can a budget want
    this one."""
    compressed = candidate.score.size_compressed_bytes is not None
    measured = [*(["size_compressed"] if compressed else []), *candidate.score.resources]
    alike = [
        candidate
        for candidate in before
        if all(candidate.score.figure(name) is not None for name in measured)
    ]
    # It may decide
    judged = ["loss"] if all(other.score.loss is not None for other in (*alike, candidate)) else []
    quantities = (*_QUANTITIES, *judged, *measured)
    return any(
        other.number == candidate.number
        for other in pareto_front([*alike, candidate], quantities, goal)
    )


def exported_best(run: Run, study: Study, candidates: Sequence[Candidate]) -> Candidate | None:
    """The best, as a finished search of the same trials, budget and formats exported and verified
    it; or None."""
    try:
        front, record = read_mapping(run.front), read_mapping(run.best / artefact.SCORE)
        verified = read_mapping(run.best / artefact.VERIFICATION)
        formats = {
            *study.formats,
            "safetensors",
            artefact.runs(study.target.runtime, (study.folder,)),
        }
        same = (
            front["best"] == record["trial"]
            and front["budget"] == record["budget"] == study.budget.to_json()
            and verified["passed"]
            and not verified["open"]
            and set(record["formats"]) == formats
            and all(
                artefact.digest(run.best / name) == known for name, known in record["files"].items()
            )
        )
        score = Score.from_json(record)
    except (ValueError, KeyError, TypeError, OSError):
        return None
    exported = (
        candidate for candidate in candidates if same and candidate.number == record["trial"]
    )
    return next((replace(candidate, score=score) for candidate in exported), None)


def keep_model(run: Run, candidate: Candidate, model: nn.Module, dense: nn.Module) -> None:
    """Write plan.json, model.safetensors and score.json of a trial; score.json last: a folder with
    one is whole."""
    folder = run.trial(candidate.number)
    run.write_json(
        folder / "plan.json",
        candidate.plan.to_json() | Architecture.of(dense, model).to_json(),
    )
    save_weights(model, folder / "model.safetensors")
    run.write_json(folder / "score.json", candidate.score.to_json() | {"files": digests(folder)})


def with_models(run: Run, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those whose trained model the run has kept, and that is as it was written."""
    return [candidate for candidate in candidates if intact(run.trial(candidate.number))]


def damaged_models(run: Run, candidates: Iterable[Candidate]) -> list[int]:
    """The numbers of those whose model was kept and is not as it was written any more."""
    return [
        candidate.number
        for candidate in candidates
        if run.trial(candidate.number).exists() and not intact(run.trial(candidate.number))
    ]


def answering(run: Run, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that a budget can be answered by: judged untrained, or trained with a model that the
    run has kept."""
    kept = list(candidates)
    models = {model.number for model in with_models(run, kept)}
    return [
        candidate
        for candidate in kept
        if candidate.stage == "screened" or candidate.number in models
    ]


def kept_model(run: Run, number: int, dense: nn.Module) -> nn.Module:
    """The model of a trial on the front. Raises InputError where the run has none of that
    number."""
    folder = run.trial(number)
    if not intact(folder):
        kept = sorted(int(path.parent.name) for path in run.trial(0).parent.glob("*/score.json"))
        raise InputError(
            f"trial {number} has no model in {run.folder}: only trials that came onto the front "
            f"are kept: {kept}, and "
            "those whose files were damaged since are left out"
        )
    model = Architecture.from_json(json.loads((folder / "plan.json").read_text())).build(dense)
    load_model(model, str(folder / "model.safetensors"))
    return model.eval()


def keep_result(run: Run, key: str, candidate: Candidate) -> None:
    """Remember what training a plan came to, so that it is never computed again."""
    run.cache("trained", key, {"trial": candidate.number, "score": candidate.score.to_json()})


def kept_result(run: Run, key: str, number: int) -> Score | None:
    """The remembered result of a plan for trial `number`; its model's folder, where there is one,
    is copied along."""
    kept = run.recall("trained", key)
    if kept is None:
        return None
    old, new = run.trial(kept["trial"]), run.trial(number)
    if intact(old) and not new.exists():
        shutil.copytree(old, new)
    return Score.from_json(kept["score"])


def front_record(
    study: Study, dense: Score, front: Sequence[Candidate], best: Candidate | None
) -> dict[str, Any]:
    """The content of front.json."""
    metric = study.task.metric
    return {
        "version": 1,
        "metric": {"name": metric.name, "goal": metric.goal},
        "baseline": dense.to_json(),
        "budget": study.budget.to_json(),
        "best": None if best is None else best.number,
        "front": [
            {
                "trial": candidate.number,
                "feasible": candidate.feasible,
                "plan": candidate.plan.to_json(),
                "score": candidate.score.to_json(),
            }
            for candidate in front
        ],
    }


def write_front(
    run: Run, study: Study, dense: Score, front: Sequence[Candidate], best: Candidate | None
) -> None:
    """Rewrite front.json whole."""
    run.write_json(run.front, front_record(study, dense, front, best))


def write_table(
    run: Run, candidates: Sequence[Candidate], trials: Sequence[Any], groups: Sequence[Group]
) -> None:
    """Rewrite trials.csv whole: a row for each trial, with every figure of its score, its widths
    and its plan."""
    by_number = {candidate.number: candidate for candidate in candidates}

    def write(path: Path) -> None:
        with open(path, "w", newline="") as file:
            rows = csv.DictWriter(file, _COLUMNS)
            rows.writeheader()
            for trial in trials:
                rows.writerow(_row(trial, by_number.get(trial.number), groups))

    write_whole(run.table, write)


def _row(trial: Any, candidate: Candidate | None, groups: Sequence[Group]) -> dict[str, Any]:
    attrs = trial.user_attrs
    row: dict[str, Any] = {
        "trial": trial.number,
        "state": trial.state.name,
        "seconds": attrs.get("seconds"),
    }
    if attrs.get("stage") == "probe" and {"plan", "score", "reason"} <= set(attrs):
        plan, score = Plan.from_json(attrs["plan"]), Score.from_json(attrs["score"])
        candidate = Candidate(trial.number, plan, score, False, "probe", attrs["reason"])
        # Optuna's FAIL keeps it from the samplers; it was measured to its end
        row["state"] = TrialState.COMPLETE.name
    elif candidate is None and attrs.get("held_back"):
        row |= {
            "state": "WAITING",
            "reason": "held back while the best were trained; evaluated when the search goes on",
        }
    elif candidate is None and trial.state.is_finished():
        row["reason"] = (
            attrs.get("again", "interrupted") + ": its plan is tried again as another trial"
        )
    if candidate is not None:
        figures = candidate.score.to_json()
        techniques = sorted({choice.technique for _, choice in candidate.plan})
        row |= {name: figures[name] for name in _FIGURES}
        row["resources"] = " ".join(
            f"{name}={value:g}" for name, value in candidate.score.resources.items()
        )
        row |= {
            "stage": candidate.stage,
            "feasible": _feasible(candidate),
            "reason": candidate.reason,
            "origin": _origin(attrs),
            "uncounted": " ".join(candidate.score.uncounted),
            "techniques": "+".join(techniques) or "dense",
            "widths": _widths(groups, candidate.plan),
        }
    if "plan" in attrs:
        row["plan"] = json.dumps(attrs["plan"])
    return row


def _widths(groups: Sequence[Group], plan: Plan) -> str:
    """`conv1:units 64 → 32; layer1.0:blocks gone`: what is left of the units and blocks that a plan
    names."""
    left = widths_of(groups, plan).items()
    return "; ".join(
        f"{key} {f'{before} → {after}' if after else 'gone'}" for key, (before, after) in left
    )


def _feasible(candidate: Candidate) -> bool | None:
    """None, where only training or fresh processes can tell: what was judged untrained keeps all
    that is known."""
    if candidate.stage == "probe" or (candidate.stage == "screened" and not candidate.reason):
        return None
    return candidate.feasible


def _origin(attrs: Mapping[str, Any]) -> str | None:
    """Why there is a trial beside those asked for: what it follows from."""
    if "probe" in attrs:
        return f"probe of {attrs['probe']}"
    if "promotes" in attrs:
        return f"trains trial {attrs['promotes']}"
    return f"refills trial {attrs['refills']}" if "refills" in attrs else None
