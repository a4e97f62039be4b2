"""What the records of a long run cost: a run of 1,000 trials is faked, ranked, and another budget
exported from it.

Run: .venv/bin/python -m scripts.benchmarks.records [--trials 1000] [--out DIR]
The quickstart's study is searched with a few trials and one epoch, its plans are then repeated with
other figures. Prints seconds of `promotion.best`, and seconds and peak memory of `autoprune export
RUN --budget`.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import optuna

from autoprune import config
from autoprune.run import Run
from autoprune.score import Candidate, Score
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.selecting import promotion
from autoprune.study import Study

BUDGET, OTHER = "latency=60%", "latency=90%"


def short_run(folder: Path) -> None:
    """The quickstart's study with few trials, one of them trained for an epoch."""
    settings = [
        "search.finalists=1",
        "task.training.epochs=1",
        "recovery.epochs=1",
        "export.formats=[safetensors]",
    ]
    sets = [text for each in settings for text in ("--set", each)]
    command = [
        sys.executable,
        "-m",
        "autoprune",
        "search",
        "digits",
        "--trials",
        "10",
        "--budget",
        BUDGET,
        *sets,
    ]
    subprocess.run([*command, "--out", str(folder), "--quiet"], check=True)


def lengthen(folder: Path, trials: int) -> None:
    """Add judged plans to a run's journal until it has so many trials: those there are, with
    figures of their own."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    file = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    storage, draw = optuna.storages.JournalStorage(file), random.Random(0)
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    judged = [each for each in study.get_trials() if each.user_attrs.get("stage") == "screened"]
    for number in range(len(study.get_trials()), trials):
        each, ratio, loss = (
            judged[number % len(judged)],
            draw.uniform(0.3, 0.65),
            draw.uniform(0.01, 0.5),
        )
        score: dict[str, Any] = {**each.user_attrs["score"], "loss": loss, "latency_ratio": ratio}
        params = {
            key: draw.uniform(0, 0.9) if key.endswith("ratio") else value
            for key, value in each.params.items()
        }
        made = optuna.trial.create_trial(
            values=[score["metric"], ratio],
            params=params,
            distributions=each.distributions,
            user_attrs={**each.user_attrs, "score": score},
            constraints=each.constraints,
        )
        study.add_trial(made)


def built(folder: Path, budget: str) -> Study:
    """The study of a run, under a budget."""
    return config.build(config.read(str(folder / "study.yaml"), budget=[budget]))


def ranked(folder: Path, budget: str) -> tuple[float, list[Candidate]]:
    """Seconds that ranking all plans takes, and the plans in the order in which they should be
    trained."""
    study = built(folder, budget)
    dense = Score.from_json(json.loads((folder / "dense" / "score.json").read_text()))
    with Run(folder).lock():
        candidates = Journal.read(study, Run(folder), dense)
    began = time.perf_counter()
    found = promotion.best(study, dense, candidates)
    return time.perf_counter() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument(
        "--out", type=Path, help="where the run is made, or was made before; a temporary folder"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = (given.out or Path(place)) / "run"
        if not folder.exists():
            short_run(folder)
            lengthen(folder, given.trials)
        print("| what | seconds | peak memory |\n|---|---:|---:|")
        for budget in (BUDGET, "metric_drop=0.5"):
            seconds, plans = ranked(folder, budget)
            print(
                f"| `promotion.best` of {given.trials} trials, {budget}: {len(plans)} plans | "
                f"{seconds:.3f} | |"
            )
        began = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "autoprune",
            "export",
            str(folder),
            "--budget",
            OTHER,
            "--quiet",
        ]
        subprocess.run([*command, "--out", str(Path(place) / "best")], check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(
            f"| `autoprune export RUN --budget {OTHER}` | {time.monotonic() - began:.1f} | "
            f"{peak:.0f} MB |"
        )


if __name__ == "__main__":
    main()
