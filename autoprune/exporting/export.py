"""Write a finished candidate as an artefact: a folder that holds everything needed to run, check
and rebuild it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune import plugins
from autoprune.budget import Budget
from autoprune.errors import AutopruneError, InputError, ModelError, brief
from autoprune.exporting import artefact, lowered, shipped
from autoprune.files import read_mapping
from autoprune.measuring import resources
from autoprune.measuring.timing import subprocesses
from autoprune.plan import Plan
from autoprune.pruning.surgery.architecture import Architecture
from autoprune.run import Run
from autoprune.score import Score
from autoprune.study import Study

__all__ = ["REFERENCE_INPUTS", "Finished", "copy_artefact", "export", "refuse_foreign"]

REFERENCE_INPUTS = 64


@dataclass(frozen=True)
class Finished:
    """A candidate that is done: `model` is cut, trained and without masks, on the CPU and in eval
    mode.

    `dense` is the module it was cut from, `number` its trial (None: it comes from no search).
    """

    plan: Plan
    model: nn.Module
    dense: nn.Module
    score: Score
    dense_score: Score
    number: int | None = None


def export(
    study: Study,
    finished: Finished,
    folder: Path | str,
    *,
    formats: Sequence[str] | None = None,
    budget: Budget | None = None,
) -> Score:
    """Write `finished` to `folder`, whole or not at all; gives its score with the size of the file
    the target runs.

    The formats are the study's unless given; safetensors, and the one that the target runs, are
    always among them. The budget, the study's unless given, is recorded for `verify`. 64 training
    inputs, repeated where there are fewer, and the model's outputs are recorded before anything is
    exported. An earlier artefact in `folder` is replaced; files that no export wrote are kept.
    Raises InputError where `folder` is something else, ModelError where a format fails.
    """
    folder = Path(folder).resolve()
    refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        score = _fill(
            temporary, study, finished, formats, study.budget if budget is None else budget
        )
        # mkdtemp makes folders for one user alone
        temporary.chmod(0o755)
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return score


def _fill(
    folder: Path, study: Study, done: Finished, formats: Sequence[str] | None, budget: Budget
) -> Score:
    """Write every file of the artefact into `folder`."""
    folders = (study.folder, Path.cwd())
    inputs = study.task.calibration(REFERENCE_INPUTS)
    with torch.no_grad():
        outputs = artefact.output_tensors(inputs.call(done.model.eval()))
    if not outputs:
        raise ModelError(
            "the model's output holds no tensor, so that nothing could be compared after an export"
        )
    artefact.write_reference(folder / artefact.REFERENCE, inputs, outputs)
    Run.write_yaml(
        folder / artefact.STUDY, {**study.resolved, "folder": str(study.folder.resolve())}
    )
    Run.write_json(
        folder / artefact.PLAN,
        done.plan.to_json() | Architecture.of(done.dense, done.model).to_json(),
    )
    lowered.write(folder, done.model, inputs, study.target)
    runs = artefact.runs(study.target.runtime, folders)
    names = list(
        dict.fromkeys((*(study.formats if formats is None else formats), "safetensors", runs))
    )
    sample = inputs.rows(2)  # exporters take a batch of 1 for a constant
    filenames = {name: _save(name, done.model, sample, folder, folders) for name in names}
    runs_file = shipped.write(folder, filenames[runs], done.model, study)
    score = done.score.evolve(size_bytes=(folder / runs_file).stat().st_size)
    if score.size_compressed_bytes is not None:
        compressed = resources.compressed_bytes((folder / runs_file).read_bytes())
        score = score.evolve(size_compressed_bytes=compressed)
    files = {"formats": filenames, "runs": runs_file}
    Run.write_json(folder / artefact.SCORE, _record(folder, study, done, score, budget) | files)
    return score


def _save(name: str, model: nn.Module, sample: Any, folder: Path, folders: Sequence[Path]) -> str:
    """Save in format `name`; the file's name."""
    plugin = plugins.load("format", name, folders)()
    filename: str = plugin.filename
    try:
        with torch.no_grad():
            plugin.save(model, sample, folder / filename)
    except AutopruneError:
        raise
    except Exception as problem:  # exporters raise kinds of their own, without end
        reason = f"{type(problem).__name__}: {brief(problem)}"
        raise ModelError(f"the model cannot be saved in format {name!r}: {reason}") from problem
    if not (folder / filename).is_file():
        raise ModelError(f"the format {name!r} wrote no {filename}")
    return filename


def _record(
    folder: Path, study: Study, done: Finished, score: Score, budget: Budget
) -> dict[str, Any]:
    """score.json: the score at the top level, and what it is to be checked against."""
    files = {path.name: artefact.digest(path) for path in sorted(folder.iterdir())}
    return score.to_json() | {
        # Since milliseconds are the ratio of one dense figure, and the machine is named
        "version": 2,
        "machine": subprocesses.machine(),
        "trial": done.number,
        "goal": study.task.metric.goal,
        "target": study.target.to_json(),
        "further": [target.to_json() for target in study.further],
        "dense": done.dense_score.to_json(),
        "budget": budget.to_json(),
        "files": files,
    }


def copy_artefact(source: Path, folder: Path) -> None:
    """Copy an artefact that is exported and verified to `folder`, whole or not at all, as `export`
    writes one."""
    folder = folder.resolve()
    refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_foreign(folder: Path) -> None:
    """Raise InputError where `folder` is there and is neither empty nor an artefact."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder to export to")
    records = (artefact.PLAN, artefact.STUDY, artefact.SCORE)
    if any(folder.iterdir()) and not all((folder / name).exists() for name in records):
        raise InputError(
            f"{folder} is not empty and holds no artefact, so it is not replaced; give another "
            "folder"
        )


def _move_into_place(temporary: Path, folder: Path) -> None:
    """Put `temporary` at `folder`; what lay there goes, except files that no export wrote."""
    if not folder.exists():
        os.rename(temporary, folder)
        return
    own = _own_files(folder)
    for path in folder.iterdir():
        if path.name not in own and not (temporary / path.name).exists():
            _copy(path, temporary / path.name)
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _own_files(folder: Path) -> set[str]:
    """Names of the files that an export writes, and of those that the one in `folder` wrote."""
    own = {
        artefact.STUDY,
        artefact.PLAN,
        artefact.SCORE,
        artefact.VERIFICATION,
        artefact.REFERENCE,
        lowered.LOWERING,
    }
    own |= {plugins.load("format", name)().filename for name in plugins.names("format")}
    try:
        return own | set(read_mapping(folder / artefact.SCORE)["files"])
    except (ValueError, KeyError, TypeError):
        return own  # a broken record: what it alone knew is kept
