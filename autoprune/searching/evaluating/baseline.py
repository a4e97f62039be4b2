"""The dense baseline: trained once or loaded, scored, kept in the run."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from autoprune.errors import InputError
from autoprune.files import read_json
from autoprune.plan import Plan
from autoprune.run import Run, free_name, write_whole
from autoprune.score import Score
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating.integrity import digests, intact
from autoprune.searching.evaluating.origin import at_chance
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.study import Study
from autoprune.training.judging import judge
from autoprune.training.loop import train

__all__ = ["establish", "has_baseline", "save_weights"]


def has_baseline(study: Study, run: Run) -> bool:
    """Whether the run has the trained dense model of this very study."""
    record = _record(run)
    return record is not None and record.get("task") == _mark(study) and intact(run.dense)


def _record(run: Run) -> dict[str, Any] | None:
    """dense/score.json, or None where it cannot be read."""
    try:
        record = read_json(run.dense / "score.json")
        Score.from_json(record)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if isinstance(record, dict) else None


def _mark(study: Study) -> str:
    shipped = (
        "" if study.target.dtype == "fp32" else f"-{study.target.runtime}-{study.target.dtype}"
    )
    return f"{study.task.digest()}-{study.search.seed}{shipped}"


def establish(study: Study, prepared: Prepared, run: Run, listener: Listener) -> Score:
    """Give `prepared.model` its trained weights and return the dense score, from the run where it
    was kept.

    Its metric is that of the dense model in the target's dtype, as the metrics of all candidates
    are.

    Raises InputError where the run has trials of another task: the study is the same, but data or
    sources have changed.
    """
    if has_baseline(study, run):
        return _load(study, prepared, run)
    _make_room(study, run, listener)
    listener.note(prepared.origin)
    if not prepared.trained:
        epochs = study.task.training.epochs
        listener.on_step(0, f"training the dense model, {epochs} epochs")
        train(
            prepared.model,
            study.task,
            study.task.training,
            seed=study.search.seed,
            report=listener.progress,
        )
    score = _judge(study, prepared, listener)
    save_weights(prepared.model, run.dense / "model.safetensors")
    _write(study, run, score)
    return score


def _load(study: Study, prepared: Prepared, run: Run) -> Score:
    """The kept weights and score, with the costs that were measured now: the latency of the dense
    model is one figure, wherever it is shown."""
    load_model(prepared.model, str(run.dense / "model.safetensors"))
    kept = Score.from_json(read_json(run.dense / "score.json"))
    costs = prepared.dense.evolve(nonzero_params=kept.nonzero_params, size_compressed_bytes=None)
    score = prepared.costs.with_stored_size(
        prepared.model, prepared.cut_by_magnitude(Plan()), costs.fill_from(kept)
    )
    if score != kept:
        _write(study, run, score)
    return score


def _write(study: Study, run: Run, score: Score) -> None:
    record = score.to_json() | {"task": _mark(study), "files": digests(run.dense)}
    run.write_json(run.dense / "score.json", record)


def _make_room(study: Study, run: Run, listener: Listener) -> None:
    """Set a damaged dense model aside. Raises InputError where the run has trials of another
    task."""
    record = _record(run)
    if run.dense.exists() and (record is None or record.get("task") == _mark(study)):
        _set_aside(run, listener)
    elif (run.dense / "score.json").exists() and run.has_results:
        behind = (
            ", ".join(str(path) for path in study.task.sources)
            or "the model, its loss or its metric"
        )
        raise InputError(
            f"{run.folder} has results of this study, but its data or what is behind it "
            f"({behind}) has changed since. "
            f"Start again with --fresh, which keeps the old folder as {run.folder.name}.1, or give "
            "another --out"
        )


def _judge(study: Study, prepared: Prepared, listener: Listener) -> Score:
    """The dense score, with the quality on validation and test data; a model that guesses is
    told."""
    model, device = prepared.model, study.task.training.device
    quality = judge(model, study.task, study.target, "validation", device)
    test = (
        judge(model, study.task, study.target, "test", device).metric
        if study.task.data.test is not None
        else None
    )
    if at_chance(study.task, model, prepared.inputs):
        listener.note(
            f"WARNING: the dense model guesses ({study.task.metric.name} {quality.metric:.4g}), "
            "copies with shuffled "
            "weights do as well: check weights, data and task.training before trusting anything "
            "below"
        )
    score = prepared.dense.evolve(
        nonzero_params=sum(int(torch.count_nonzero(tensor)) for tensor in model.parameters()),
        metric=quality.metric,
        loss=quality.loss,
        test_metric=test,
        metric_error=quality.error,
    )
    return prepared.costs.with_stored_size(model, prepared.cut_by_magnitude(Plan()), score)


def _set_aside(run: Run, listener: Listener) -> None:
    """Rename what is left of the dense model, of which a file is damaged or missing; it is trained
    again."""
    entries = list(run.dense.iterdir()) if run.dense.is_dir() else [run.dense]
    if all(path.name != "score.json" and path.is_file() for path in entries):
        return  # a kill left the weights alone: score.json is written last
    place = run.dense.rename(free_name(run.dense, "damaged-"))
    listener.note(
        f"{run.dense} is damaged, or was not finished; it is kept as {place.name}, and made again"
    )


def save_weights(model: nn.Module, path: Path) -> None:
    """Every tensor of the model, tied ones once, whole or not at all."""
    with torch.no_grad():
        try:
            write_whole(path, lambda temporary: save_model(model, str(temporary)))
        except SafetensorError as error:  # what the system says of a full disk is in its text
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code), str(path)) from error
