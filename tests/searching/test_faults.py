"""Whatever code of the user's raises, wherever it is called, is told with its place; none of it ends a search."""

from __future__ import annotations

import csv
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from typer.testing import CliRunner

from autoprune import cli, faults, plugins
from autoprune.budget import Budget
from autoprune.errors import CodeError, ModelError, TrialsError, VerificationError
from autoprune.run import Run
from autoprune.score import Candidate
from autoprune.searching.evaluating import preparation
from autoprune.searching.search import search
from autoprune.searching.selecting import finalists
from autoprune.searching.stall import watch
from autoprune.space import Options, Space
from autoprune.study import Settings, Study
from autoprune.target import Target
from autoprune.task import Data, Metric, Recipe, Task
from autoprune.training.loop import evaluate, train

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

engine = sys.modules["autoprune.searching.winner"]


class Abrupt(BaseException):
    """What no `except Exception` catches."""


def endless() -> int:
    return endless() + 1


FAULTS: dict[str, Callable[[], Any]] = {
    "ZeroDivisionError": lambda: 1 // 0,
    "SystemExit": lambda: sys.exit(0),
    "StopIteration": lambda: next(iter(())),
    "MemoryError": lambda: (_ for _ in ()).throw(MemoryError("no room")),
    "RecursionError": endless,
    "Abrupt": lambda: (_ for _ in ()).throw(Abrupt("at once")),
}

MINE = """
import sys
import torch
from torch import nn
from torch.utils.data import TensorDataset, Dataset
{module}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        {forward}
        return self.two(torch.relu(self.one(x)))

def build():
    {factory}
    return Net()

class Rows(Dataset):
    def __init__(self, part):
        self.part = part

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if self.part == "train" and index == 0:
            pass
            {train}
        if self.part == "validation" and index == 7:
            pass
            {validation}
        return torch.ones(4) * (index % 3), index % 3

def data():
    {data}
    return {{"train": Rows("train"), "validation": Rows("validation")}}

def adapt(batch):
    {adapter}
    return (batch[0],), {{}}, batch[1]

def loss(output, target):
    {loss}
    return nn.functional.cross_entropy(output, target)

def metric(outputs, targets):
    {metric}
    return 0.5

class Ranking:
    scores, needs, comparable = "elements", (), False

    def score(self, weight):
        {criterion}
        return weight.abs()

class Cutting:
    level, gradual = "units", False

    def fits(self, group):
        {technique}
        return None

    def keep(self, importance, ratio):
        return importance >= importance.sort().values[min(int(ratio * len(importance)), len(importance) - 1)]

class Running:
    artefact, dtypes, converts = "module", ("fp32",), ()

    def prepare(self, artefact, inputs, target):
        {runtime}
        return lambda: inputs.call(artefact)

    def version(self):
        return "1"
"""
PLACES = {  # in MINE -> what is said of it
    "module": "importing",
    "factory": ":build' failed",
    "forward": "forward",
    "train": "sample 0 of the train data",
    "validation": "sample 7 of the validation data",
    "data": ":data' failed",
    "adapter": "adapter, on batch 1 of the train data",
    "loss": "the loss on the validation data",
    "metric": "the metric 'own' on the validation data",
    "criterion": "the criterion",
    "technique": "the technique",
    "runtime": "the runtime",
}
STUDY = """version: 1
name: faulty
task:
  model: {0}:build
  data: {0}:data
  adapter: {0}:adapt
  loss: {0}:loss
  metric: {{name: own, function: "{0}:metric", goal: maximize}}
  training: {{epochs: 1, batch_size: 10}}
space: {{default: {{techniques: ["{0}:Cutting", structured], criteria: ["{0}:Ranking"]}}}}
target: {{runtime: {1}}}
budget: {{flops: 70%}}
search: {{trials: 2, finalists: 1, objectives: [metric, flops]}}
recovery: {{epochs: 1}}
export: {{formats: [safetensors]}}
"""
_number = itertools.count()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fresh processes, and short measurements."""
    from autoprune.measuring import measure

    timed = measure.time_artefact
    monkeypatch.setattr(
        measure,
        "time_artefact",
        lambda *args, **options: timed(*args, **{**options, "processes": 0, "budget_s": 0.01}),
    )

    def passed(folder: Path, task: Task | None = None) -> dict[str, Any]:
        result: dict[str, Any] = {"version": 1, "passed": True, "open": [], "checks": []}
        Run.write_json(folder / "verification.json", result)
        return result

    monkeypatch.setattr(engine, "verify_in_fresh_process", passed)


def faulty(folder: Path, place: str, fault: str) -> tuple[Path, str]:
    """A study whose code breaks at one place, and how that line is told."""
    name = f"faulty_{next(_number)}"
    text = MINE.format(**{each: fault if each == place else "pass" for each in PLACES})
    (folder / f"{name}.py").write_text(text)
    runtime = f'"{name}:Running"' if place == "runtime" else "eager"
    path = folder / "study.yaml"
    path.write_text(STUDY.format(name, runtime))
    lines = [
        number for number, line in enumerate(text.splitlines(), start=1) if line.strip() == fault
    ]
    return path, f"{name}.py, line {lines[0]}"


STATEMENTS = [
    *((place, "sys.exit(0)", "SystemExit: sys.exit(0)") for place in PLACES),
    *(
        (place, "raise StopIteration('done')", "StopIteration: done")
        for place in ("train", "validation", "adapter")
    ),
    ("loss", "raise KeyError('class')", "KeyError: 'class'"),
    ("metric", "raise type('Abrupt', (BaseException,), {})('at once')", "Abrupt: at once"),
]


@pytest.mark.promise("user-code")
@pytest.mark.parametrize(("place", "statement", "told"), STATEMENTS)
def test_a_fault_before_the_trials_is_one_paragraph_with_its_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    brief: None,
    place: str,
    statement: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path, line = faulty(tmp_path, place, statement)
    ended = CliRunner().invoke(cli.app, ["search", str(path), "--quiet"])
    assert ended.exit_code == 2, ended.stderr
    assert PLACES[place] in ended.stderr and told in ended.stderr and line in ended.stderr, (
        ended.stderr
    )
    assert ended.stderr.count("\n") == 1 and len(ended.stderr) < 520


@pytest.mark.promise("user-code")
@pytest.mark.parametrize("kind", FAULTS)
def test_every_kind_of_fault_is_told_with_its_line_but_ctrl_c(kind: str) -> None:
    for guard in (faults.code("the loss"), faults.boundary()):
        with (
            pytest.raises(CodeError, match=rf"failed with {kind}: .*\(test_faults.py, line \d+\)"),
            guard,
        ):
            FAULTS[kind]()
    with pytest.raises(KeyboardInterrupt), faults.code("the loss"):
        raise KeyboardInterrupt


def test_a_fault_that_is_not_the_users_passes_the_boundary() -> None:
    with pytest.raises(KeyError, match="None"):
        faults.boundary()(plugins.names)(None)
    with pytest.raises(CodeError, match="code of the study failed with"), faults.boundary():
        FAULTS["ZeroDivisionError"]()


class Rows(Dataset[Any]):
    def __init__(
        self, at: int = -1, fault: Callable[[], Any] | None = None, labels: int = 3
    ) -> None:
        self.at, self.fault, self.labels = at, fault, labels

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        if index == self.at and self.fault is not None:
            self.fault()
        return torch.randn(4, generator=torch.Generator().manual_seed(index)), index % self.labels


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def accuracy(outputs: Any, targets: Any) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


TASK = Task(
    build,
    Data(Rows(), Rows(), Rows()),
    nn.functional.cross_entropy,
    Metric("accuracy", accuracy),
    Recipe(epochs=1, batch_size=10, device="cpu"),
    description={"model": "tests"},
)


@pytest.mark.promise("user-code")
@pytest.mark.parametrize("kind", ["ZeroDivisionError", "SystemExit", "StopIteration"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_fails_is_named_and_a_worker_that_dies_is_told(
    kind: str, workers: int
) -> None:
    loader = DataLoader(Rows(17, FAULTS[kind]), 10, num_workers=workers)
    task = replace(TASK, data=Data(Rows(), loader))
    what = (
        "the validation data failed with"
        if workers
        else "sample 17 of the validation data failed with"
    )
    if workers and kind == "SystemExit":
        what += ".*(exited unexpectedly|ConnectionResetError|EOFError|FileNotFoundError)"  # whichever is noticed first
    with pytest.raises(CodeError, match=what) as caught:
        evaluate(build(), task, "validation", "cpu")
    assert workers or f"{kind}" in str(caught.value)


@pytest.mark.promise("user-code")
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_label_without_a_class_is_told_with_its_split(split: str) -> None:
    task = replace(TASK, data=replace(TASK.data, **{split: Rows(labels=11)}))
    says = rf"the {split} data has the label \d+, but the model's output has 3 classes: labels are 0 to 2"
    with pytest.raises(ModelError, match=says):
        if split == "train":
            train(build(), task, task.training, seed=0)
        else:
            evaluate(build(), task, split, "cpu")


def test_a_plugin_of_the_users_own_keeps_its_name_and_its_settings(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shares.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Share:\n    part: int = 2\n"
        "    def __post_init__(self):\n        assert self.part < 5, 'too many parts'\n"
        "    @staticmethod\n    def twice(value): return 2 * value\n    def keep(self, i, ratio): return i / 0\n"
    )
    made = plugins.create("technique", "shares:Share(part=3)", [tmp_path])
    assert (made.part, made.twice(4), type(made).__name__) == (3, 8, "Share")
    assert type(made) is type(plugins.create("technique", "shares:Share", [tmp_path]))
    with pytest.raises(
        CodeError, match=r"the technique 'shares:Share', in keep, failed with ZeroDivisionError"
    ):
        made.keep(1, 0.5)
    with pytest.raises(
        CodeError, match=r"'shares:Share\(part=9\)' failed with AssertionError: too many parts"
    ):
        plugins.create("technique", "shares:Share(part=9)", [tmp_path])


@dataclass
class Listens:
    """Notes what it hears, and which trial runs."""

    trial: int = 0
    notes: list[str] = field(default_factory=list)
    ended: list[Candidate] = field(default_factory=list)

    def on_plan(self, seconds: float | None, trials: int) -> None: ...

    def on_step(self, trial: int, what: str) -> None:
        self.trial = trial

    def progress(self, share: float) -> None: ...

    def on_trial(self, candidate: Candidate, best: Candidate | None) -> None:
        self.ended.append(candidate)

    def note(self, text: str) -> None:
        self.notes.append(text)


def study(task: Task = TASK, **settings: Any) -> Study:
    settings = {"trials": 6, "finalists": None, "objectives": ("metric", "flops"), **settings}
    recipe = Recipe(epochs=1, batch_size=10, device="cpu")
    return Study(
        "small",
        task,
        Space(Options(("neuron",), (0.1, 0.9), ("l1",)), {"4": Options((), (0.0, 0.9), ())}),
        Target("cpu_eager", runtime="eager"),
        Budget.parse({"flops": "99%"}),
        Settings(**settings),
        recipe,
        ("safetensors",),
        resolved={"name": "small", "task": {"model": "python"}},
    )


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "trials.csv") as file:
        return list(csv.DictReader(file))


def broken(task: Task, place: str, fault: Callable[[], Any]) -> Task:
    """The task with a fault at a place, whenever that is called."""

    def and_fault(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            fault()
            return function(*args, **kwargs)

        return call

    if place == "data":
        return replace(task, data=replace(task.data, validation=Rows(5, fault)))
    if place == "metric":
        return replace(task, metric=replace(task.metric, function=and_fault(task.metric.function)))
    return replace(task, **{place: and_fault(getattr(task, place))})


@pytest.mark.promise("trial-faults")
@pytest.mark.parametrize(
    ("place", "kind"),
    [
        *(("loss", kind) for kind in ("MemoryError", "Abrupt")),
        *((place, "SystemExit") for place in ("metric", "adapter", "data")),
    ],
)
def test_a_fault_in_a_trial_ends_the_trial_not_the_search(
    tmp_path: Path, brief: None, place: str, kind: str
) -> None:
    listener = Listens()

    def fault() -> None:
        if listener.trial % 2:
            FAULTS[kind]()

    result = search(study(broken(TASK, place, fault)), Run(tmp_path), listener)
    table = rows(tmp_path)
    failed = {int(row["trial"]) for row in table if row["stage"] == "failed"}
    assert failed == {1, 3, 5} and len(table) == 6 and result.best is not None
    for row in table:
        if row["stage"] == "failed":
            assert (
                f"failed with {kind}" in row["reason"] and "(test_faults.py, line" in row["reason"]
            )
            assert "Traceback" in (tmp_path / "trials" / row["trial"] / "error.txt").read_text()
    assert sum(note.startswith("trial 3 failed: ") for note in listener.notes) == 1


@pytest.mark.promise("trial-faults")
def test_a_search_whose_trials_all_fail_alike_ends_and_says_so(tmp_path: Path, brief: None) -> None:
    listener = Listens()

    def fault() -> None:
        if listener.trial:
            FAULTS["ZeroDivisionError"]()

    with pytest.raises(
        TrialsError, match=r"5 trials failed .*all in the same way.*test_faults.py, line \d+"
    ) as caught:
        search(study(broken(TASK, "loss", fault), trials=12), Run(tmp_path), listener)
    assert caught.value.exit_status == 5 and len(str(caught.value)) <= 500
    assert [row["stage"] for row in rows(tmp_path)].count("failed") == 5
    mended = search(study(broken(TASK, "loss", lambda: None), trials=12), Run(tmp_path), Listens())
    assert mended.best is not None  # the same run goes on


@pytest.mark.promise("trial-faults")
def test_a_full_disk_ends_the_search_at_once(tmp_path: Path, brief: None) -> None:
    listener = Listens()

    def fault() -> None:
        if listener.trial >= 1:
            raise OSError(28, "No space left on device")

    with pytest.raises(CodeError, match="No space left"):
        search(study(broken(TASK, "loss", fault)), Run(tmp_path), listener)
    assert listener.trial == 1


@pytest.mark.promise("trial-faults")
def test_a_finalist_that_cannot_be_trained_gives_its_place_to_the_next(
    tmp_path: Path, brief: None
) -> None:
    listener, trained = Listens(), set[int]()

    def fault() -> None:
        if torch.is_grad_enabled() and listener.trial:
            trained.add(listener.trial)
            if len(trained) == 1:
                FAULTS["MemoryError"]()

    result = search(
        study(broken(TASK, "loss", fault), finalists=1, trials=8), Run(tmp_path), listener
    )
    assert len(trained) == 2 and result.best is not None and result.best.number == max(trained)
    assert [row["stage"] for row in rows(tmp_path)][-2:] == ["failed", "trained"]


@pytest.mark.promise("trial-faults")
@pytest.mark.parametrize("where", ["measured", "exported", "verified"])
def test_the_next_finalist_takes_the_place_of_one_that_fails_at_the_end(
    tmp_path: Path, brief: None, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    listener, calls = Listens(), list[str]()
    holder = {"measured": finalists, "exported": engine, "verified": engine}[where]
    name = {"measured": "judge", "exported": "export", "verified": "verify_in_fresh_process"}[where]
    kept = getattr(holder, name)

    def once(*args: Any, **kwargs: Any) -> Any:
        calls.append(where)
        if len(calls) == 1:
            raise (
                VerificationError("not what was recorded")
                if where == "verified"
                else RuntimeError("crashed")
            )
        return kept(*args, **kwargs)

    monkeypatch.setattr(holder, name, once)
    result = search(study(), Run(tmp_path), listener)
    said = next(note for note in listener.notes if "cannot be" in note)
    assert (
        result.best is not None and len(calls) == 2 and f"trial {result.best.number} " not in said
    )
    assert ("crashed" in said) == (where != "verified")


@pytest.mark.promise("trial-faults")
def test_what_no_finalist_can_be_exported_for_is_the_error(
    tmp_path: Path, brief: None, monkeypatch: Any
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ModelError("the format cannot be written")

    monkeypatch.setattr(engine, "export", fails)
    with pytest.raises((ModelError, TrialsError), match="the format cannot be written"):
        search(study(), Run(tmp_path), Listens())


@pytest.mark.promise("trial-faults")
def test_a_probe_that_fails_leaves_its_technique_in_the_space(
    tmp_path: Path, brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, calls = preparation.Prepared.cost, itertools.count()

    def fails(self: Any, plan: Any) -> Any:
        if next(calls) == 2:  # the dense and the smallest model come first
            raise RuntimeError("out of memory")
        return cost(self, plan)

    monkeypatch.setattr(preparation.Prepared, "cost", fails)
    listener = Listens()
    search(study(finalists=1, trials=6), Run(tmp_path), listener)
    assert any(note.startswith("neuron cannot be measured alone") for note in listener.notes)
    assert any("neuron" in row["techniques"] for row in rows(tmp_path))


def spins() -> None:
    while True:
        pass


def stubborn() -> None:
    for _ in range(2):
        try:
            spins()
        except Exception:
            continue


@pytest.mark.promise("limits-of-time")
@pytest.mark.parametrize("hangs", [spins, lambda: time.sleep(60), stubborn])
def test_code_that_hangs_is_ended_and_its_line_is_told(hangs: Callable[[], None]) -> None:
    before, began = signal.getsignal(signal.SIGALRM), time.monotonic()
    if hangs is stubborn:
        with watch(study(stall_s=0.2), Listens()):
            hangs()  # it came back after the second error
    else:
        says = r"nothing moved for 0.2 s, in test_faults.py, line \d+"
        with pytest.raises(CodeError, match=says), watch(study(stall_s=0.2), Listens()):
            hangs()
    assert time.monotonic() - began < 20
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (
        0.0,
        0.0,
    )


@pytest.mark.promise("limits-of-time")
def test_what_is_heard_of_starts_the_time_anew() -> None:
    with watch(study(stall_s=1.0), Listens()) as listener:
        for step in range(8):
            time.sleep(0.25)  # 2 s in all
            listener.progress(step / 8)
    for settings, least in (({}, 0.0), ({"timeout_s": 5.0}, 290.0), ({"timeout_s": 900.0}, 890.0)):
        with watch(study(**settings), None):
            assert signal.getitimer(signal.ITIMER_REAL)[0] >= least


@pytest.mark.promise("limits-of-time")
def test_a_trial_that_hangs_is_ended_alone(tmp_path: Path, brief: None) -> None:
    listener, hung = Listens(), list[int]()

    def fault() -> None:
        if listener.trial == 1 and not hung:
            hung.append(1)
            signal.setitimer(signal.ITIMER_REAL, 0.2)  # the time would be over
            spins()

    result = search(study(broken(TASK, "loss", fault), stall_s=300.0), Run(tmp_path), listener)
    failed = [row for row in rows(tmp_path) if row["stage"] == "failed"]
    assert result.best is not None and [row["trial"] for row in failed] == ["1"]
    assert "nothing moved for 300 s, in test_faults.py, line" in failed[0]["reason"]


@pytest.mark.promise("limits-of-time")
def test_outside_the_main_thread_a_stall_that_is_asked_for_is_said_not_to_be_kept() -> None:
    listener = Listens()

    def run() -> None:
        with watch(study(stall_s=9.0), listener):
            pass

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(listener.notes) == 1 and "only in the main thread" in listener.notes[0]
