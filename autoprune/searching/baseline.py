"""The dense baseline: trained once or loaded, scored, kept in the run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from autoprune.pruning.importance import gradients
from autoprune.pruning.importance import Importance
from autoprune.run import Run, write_whole
from autoprune.score import Score
from autoprune.searching.listener import Listener
from autoprune.searching.preparation import Prepared
from autoprune.study import Study
from autoprune.training.loop import evaluate, train

__all__ = ["establish", "importance", "save_weights"]


def establish(study: Study, prepared: Prepared, run: Run, listener: Listener) -> Score:
    """Give `prepared.model` its trained weights and return the dense score, from the run where it was kept."""
    model, digest = prepared.model, study.task.digest()
    kept = run.dense / "score.json"
    if kept.exists() and json.loads(kept.read_text()).get("task") == digest:
        load_model(model, str(run.dense / "model.safetensors"))
        return Score.from_json(json.loads(kept.read_text()))
    untrained = evaluate(study.task.build(), study.task, "validation", study.task.training.device) if study.task.given is None else None
    if not prepared.trained:
        listener.started(0, f"training the dense model, {study.task.training.epochs} epochs")
        train(model, study.task, study.task.training, seed=study.search.seed, report=listener.progress)
    quality = evaluate(model, study.task, "validation", study.task.training.device)
    test = evaluate(model, study.task, "test", study.task.training.device).metric if study.task.data.test is not None else None
    if untrained is not None and not study.task.metric.better(quality.metric, untrained.metric):
        listener.note(f"WARNING: the dense model is no better than an untrained one ({study.task.metric.name} {quality.metric:.4g} "
                      f"against {untrained.metric:.4g}): check weights, data and task.training before trusting anything below")
    score = prepared.dense.updated(metric=quality.metric, loss=quality.loss, test_metric=test)
    save_weights(model, run.dense / "model.safetensors")
    run.write_json(kept, score.to_json() | {"task": digest})
    return score


def importance(study: Study, prepared: Prepared) -> Importance:
    """Importance on the trained dense model; gradients are gathered on a few training batches when first needed."""
    return Importance(prepared.model, prepared.coupling,
                      lambda: gradients(prepared.model, study.task.batches("train", seed=study.search.seed), study.task.loss))


def save_weights(model: nn.Module, path: Path) -> None:
    """Every tensor of the model, tied ones once, whole or not at all."""
    with torch.no_grad():
        write_whole(path, lambda temporary: save_model(model, str(temporary)))
