"""Samplers: their names hold what they promise, and none draws as another."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from marks import slow_but
from small_search import quick, searched

from autoprune.searching.optuna_study.samplers import SAMPLERS, population

__all__ = ["quick"]  # a fixture that every test here uses
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def _draws(
    sampler: str, losses: Callable[[dict[str, Any]], float], count: int = 30
) -> list[dict[str, Any]]:
    """What a sampler draws after trials of others, made anew for each as a search does it, and its loss is told."""
    space: dict[str, Any] = {
        f"{n}.ratio": optuna.distributions.FloatDistribution(0.0, 0.9) for n in range(6)
    }
    space |= {
        f"{n}.technique": optuna.distributions.CategoricalDistribution(("none", "structured"))
        for n in range(6)
    }
    kept = optuna.create_study(directions=["minimize", "minimize"])
    others = random.Random(0)
    found = []
    for number in range(count):
        if number % 2:  # an exchange move, say
            params = {
                key: others.choice(["none", "structured"])
                for key in space
                if key.endswith("technique")
            }
            kept.enqueue_trial(
                params | {key: others.uniform(0, 0.9) for key in space if key.endswith("ratio")}
            )
        kept.sampler = SAMPLERS[sampler](number, 40)
        trial = kept.ask(space)
        removed = sum(
            trial.params[f"{n}.ratio"] * (trial.params[f"{n}.technique"] != "none")
            for n in range(6)
        )
        trial.set_constraint("latency", 0.05 - removed / 6)
        kept.tell(trial, [losses(trial.params), 1 - removed / 6])
        if not number % 2:
            found.append(trial.params)
    return found


@pytest.mark.promise("samplers")
@pytest.mark.parametrize(
    "sampler", slow_but(["tpe", "nsga2", "random"], ["tpe", "nsga2", "gp", "random"])
)
def test_a_sampler_draws_by_what_was_told(sampler: str) -> None:
    low, high = (
        _draws(
            sampler, lambda params, sign=sign: sign * sum(params[f"{n}.ratio"] for n in range(6))
        )
        for sign in (1, -1)
    )
    if sampler == "random":
        assert low == high
        return
    told = next(place for place, (a, b) in enumerate(zip(low, high, strict=True)) if a != b)
    assert told <= 5  # of 15 draws, in a search of 40 trials
    assert sum(a != b for a, b in zip(low, high, strict=True)) >= len(low) - told - 1
    # a seed repeats it
    assert low == _draws(sampler, lambda params: sum(params[f"{n}.ratio"] for n in range(6)))
    late = slice(len(low) // 2, None)
    ratios = [
        statistics.mean(each[f"{n}.ratio"] for each in draws[late] for n in range(6))
        for draws in (low, high)
    ]
    assert ratios[0] < ratios[1]  # and it moves to where it is better
    drawn_at_random = _draws("random", lambda params: 0.0)
    assert all(each not in drawn_at_random for each in low[told:])


@pytest.mark.promise("samplers")
def test_nsga2_leaves_its_first_generation_with_the_plans_of_others(tmp_path: Path) -> None:
    searched(tmp_path, sampler="nsga2", trials=14, finalists=1, objectives=("metric", "flops"))
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    )
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    generations = [each.system_attrs.get("autoprune:generation") for each in trials]
    reached = [each for each in generations if each is not None]
    assert reached and max(reached) >= 1 and population(14) == 8 and population(100) == 12


@pytest.mark.promise("samplers")
@pytest.mark.promise("speed")
def test_a_gaussian_process_answers_in_a_tenth_of_the_evaluations() -> None:
    default, ours = optuna.samplers.GPSampler(seed=0), SAMPLERS["gp"](0, 100)
    for setting in ("_n_preliminary_samples", "_n_local_search", "_n_qmc_samples_ehvi"):
        assert 0 < getattr(ours, setting) <= getattr(default, setting) / 4
