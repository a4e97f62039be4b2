"""The dense baseline: trained once or loaded, scored, kept in the run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from autoprune.errors import InputError
from autoprune.plan import Plan
from autoprune.run import Run, write_whole
from autoprune.score import Score
from autoprune.searching.listener import Listener
from autoprune.searching.preparation import Prepared
from autoprune.study import Study
from autoprune.training.judging import judge
from autoprune.training.loop import evaluate, train

__all__ = ["establish", "kept", "save_weights"]


def kept(study: Study, run: Run) -> bool:
    """Whether the run has the trained dense model of this very study."""
    try:
        recorded = json.loads((run.dense / "score.json").read_text()).get("task")
    except (OSError, ValueError):
        return False
    return bool(recorded == _mark(study))


def _mark(study: Study) -> str:
    shipped = "" if study.target.dtype == "fp32" else f"-{study.target.runtime}-{study.target.dtype}"
    return f"{study.task.digest()}-{study.search.seed}{shipped}"


def establish(study: Study, prepared: Prepared, run: Run, listener: Listener) -> Score:
    """Give `prepared.model` its trained weights and return the dense score, from the run where it was kept.

    Its metric is that of the dense model in the target's dtype, as the metrics of all candidates are.

    Raises InputError where the run has trials of another task: the study is the same, but data or sources have changed.
    """
    model, path = prepared.model, run.dense / "score.json"
    if kept(study, run):
        load_model(model, str(run.dense / "model.safetensors"))
        kept_score = Score.from_json(json.loads(path.read_text()))
        costs = prepared.dense.updated(nonzero_params=kept_score.nonzero_params, size_compressed_bytes=None)
        score = prepared.costs.stored(model, prepared.pruned(Plan()), costs.completed(kept_score))
        if score != kept_score:  # the latency of the dense model is one figure, wherever it is shown
            run.write_json(path, score.to_json() | {"task": _mark(study)})
        return score
    if path.exists() and run.has_results:
        behind = ", ".join(str(path) for path in study.task.sources) or "the model, its loss or its metric"
        raise InputError(
            f"{run.folder} has results of this study, but its data or what is behind it ({behind}) has changed since. "
            f"Start anew with --fresh, which keeps the old folder as {run.folder.name}.1, or give another --out"
        )
    untrained = None
    if study.task.given is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(study.search.seed)
            untrained = evaluate(study.task.build(), study.task, "validation", study.task.training.device)
    if not prepared.trained:
        listener.started(0, f"training the dense model, {study.task.training.epochs} epochs")
        train(model, study.task, study.task.training, seed=study.search.seed, report=listener.progress)
    quality = judge(model, study.task, study.target, "validation", study.task.training.device)
    test = (
        judge(model, study.task, study.target, "test", study.task.training.device).metric
        if study.task.data.test is not None
        else None
    )
    if untrained is not None and not study.task.metric.better(quality.metric, untrained.metric):
        listener.note(
            "WARNING: the dense model is no better than an untrained one "
            f"({study.task.metric.name} {quality.metric:.4g} "
            f"against {untrained.metric:.4g}): check weights, data and task.training before trusting anything below"
        )
    nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
    score = prepared.dense.updated(nonzero_params=nonzero, metric=quality.metric, loss=quality.loss, test_metric=test)
    score = prepared.costs.stored(model, prepared.pruned(Plan()), score)
    save_weights(model, run.dense / "model.safetensors")
    run.write_json(path, score.to_json() | {"task": _mark(study)})
    return score


def save_weights(model: nn.Module, path: Path) -> None:
    """Every tensor of the model, tied ones once, whole or not at all."""
    with torch.no_grad():
        write_whole(path, lambda temporary: save_model(model, str(temporary)))
