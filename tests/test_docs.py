"""Every code block and command of README and docs is run here, or says why not; every link leads somewhere."""

from __future__ import annotations

import csv
import inspect
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
import yaml
from marks import slow_but
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from autoprune import api, cli, config
from autoprune.run import Run
from autoprune.searching import records

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
REASON = re.compile(r"<!-- not run: .+ -->")


@dataclass(frozen=True)
class Block:
    """One piece of code of a page: its language, its text, and the line before it."""

    language: str
    text: str
    before: str

    @property
    def skipped(self) -> bool:
        """Whether the page says why it is not run."""
        return REASON.fullmatch(self.before) is not None


def blocks(text: str) -> Iterator[Block]:
    """Fenced blocks, and indented ones that stand by themselves, as commands."""
    lines, place, before = text.splitlines(), 0, ""
    while place < len(lines):
        line = lines[place]
        if line.startswith("```"):
            end = next(
                each for each in range(place + 1, len(lines)) if lines[each].startswith("```")
            )
            yield Block(line[3:].strip(), "\n".join(lines[place + 1 : end]), before)
            place = end
        elif line.startswith("    ") and not before and not re.match(r"\s*[-*|\d]", line):
            end = place
            while end < len(lines) and lines[end].startswith("    "):
                end += 1
            yield Block("", "\n".join(each[4:] for each in lines[place:end]), before)
            place = end
            continue
        before = line.strip()
        place += 1


def kinds(page: Path, *languages: str) -> list[Block]:
    return [
        block
        for block in blocks(page.read_text())
        if block.language in languages and not block.skipped
    ]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_block_is_of_a_language_that_nothing_runs(page: Path) -> None:
    odd = [
        block
        for block in blocks(page.read_text())
        if block.language not in ("", "python", "yaml") and not block.skipped
    ]
    assert not odd, (
        f"{page.name}: {odd[0].language!r} is run by nothing; say why before it: <!-- not run: ... -->"
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.relu(self.inner(x)))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.blocks = nn.Sequential(*(Residual() for _ in range(4)))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.layer1(x)).mean((2, 3)))


def fixtures() -> dict[str, Any]:
    """What the pages take for granted: a trained model, its inputs, its data."""
    torch.manual_seed(0)
    images, labels = torch.randn(60, 3, 8, 8), torch.randint(0, 4, (60,))
    whole = TensorDataset(images, labels)
    return {
        "model": Small().eval(),
        "inputs": images[:2],
        "train_set": whole,
        "validation_set": TensorDataset(images[:20], labels[:20]),
        "loader": torch.utils.data.DataLoader(whole, batch_size=20),
        "torch": torch,
        "MyNet": Small,
    }


def bound(function: Any, answer: Any) -> Any:
    """Takes what `function` takes and answers at once: a search and its export take minutes."""

    def called(*args: Any, **options: Any) -> Any:
        inspect.signature(function).bind(*args, **options)
        return answer

    return called


def small(function: Any) -> Any:
    """The search of a page with few trials, one epoch, and a limit that nothing has to be timed for."""

    def search(model: nn.Module, **options: Any) -> Any:
        few = {
            "trials": 3,
            "finalists": 1,
            "recovery": {"epochs": 1, "device": "cpu"},
            "formats": ["safetensors"],
        }
        here = {"target": {"name": "here", "runtime": "eager"}, "budget": {"flops": "80%"}}
        return function(model, **{**options, **few, **here})

    return search


@pytest.mark.parametrize("real", slow_but([False], [False, True]), ids=["quick", "real"])
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_run_in_order(
    page: Path, real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = fixtures()
    result = SimpleNamespace(
        best=SimpleNamespace(model=names["model"]), front=[], export=lambda out: Path(out)
    )
    stand_in = {"search": bound(api.search, result), "load": bound(api.load, names["model"])}
    for name, function in ({"search": small(api.search)} if real else stand_in).items():
        monkeypatch.setattr(f"autoprune.{name}", function, raising=False)
    for block in kinds(page, "python"):
        code = compile(block.text, str(page), "exec")
        # it opens what the quickstart has written
        if "onnxruntime.InferenceSession" not in block.text:
            exec(code, names)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_yaml_blocks_are_studies_that_are_taken(page: Path, tmp_path: Path) -> None:
    for block in blocks(page.read_text()):
        if "a file of its own" in block.before:
            (tmp_path / "mine.py").write_text(block.text)
    for number, block in enumerate(kinds(page, "yaml")):
        path = tmp_path / f"study{number}.yaml"
        path.write_text(block.text)
        read = config.read(str(path))
        assert read.resolved()["name"] == yaml.safe_load(block.text)["name"]


def test_the_study_of_ones_own_is_what_check_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "own-model.md"
    code = next(block for block in blocks(page.read_text()) if "def build" in block.text)
    study = next(block for block in kinds(page, "yaml") if "mine:build" in block.text)
    (tmp_path / "mine.py").write_text(code.text)
    (tmp_path / "mine.yaml").write_text(study.text)
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(cli.app, ["check", "mine.yaml"])
    assert ended.exit_code == 0, ended.output
    assert "is trained first" in " ".join(ended.output.split())


def commands(page: Path) -> Iterator[list[str]]:
    for block in kinds(page, ""):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"\[(--[^\]]*)\](\.\.\.)?", r"\1", line), comments=True)
            if words:
                yield words


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_such_as_exist(page: Path) -> None:
    group: Any = typer.main.get_command(cli.app)
    for words in commands(page):
        if words[0] == "autoprune":
            command = group.commands[words[1]]
            words = [word.removesuffix("...") for word in words[2:]]
            command.make_context(command.name, words, resilient_parsing=False)
        else:
            assert words[0].startswith(("scripts/", "python", ".venv/bin/python")), (
                f"what is {words[0]!r}?"
            )
            script = next((word for word in words if word.startswith("scripts")), None)
            path = (
                ROOT / str(script).replace(".", "/")
                if str(script).startswith("scripts.")
                else ROOT / str(script)
            )
            assert path.exists() or path.with_suffix(".py").exists(), f"{script} is not there"


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=[*NAMES, "CONTRIBUTING.md"]
)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        place, _, anchor = link.partition("#")
        other = (page.parent / place).resolve() if place else page
        assert other.exists(), f"{page.name}: {link} leads nowhere"
        assert not anchor or anchor in anchors(other.read_text()), (
            f"{page.name}: {link} has no such heading"
        )


def test_every_page_is_in_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def pages(nav: Any) -> Iterator[str]:
        for each in nav:
            if isinstance(each, str):
                yield each
            else:
                for inner in each.values():
                    yield from pages(inner) if isinstance(inner, list) else [inner]

    listed = set(pages(site["nav"]))
    assert listed == {
        str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")
    }


@pytest.mark.parametrize("script", ["make_reference", "make_evidence"])
def test_what_is_made_is_what_its_source_says(script: str) -> None:
    ended = subprocess.run(
        [sys.executable, f"scripts/{script}.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_kept_result_is_in_a_table() -> None:
    text = "".join(page.read_text() for page in PAGES)
    evidence = runpy.run_path(str(ROOT / "scripts/make_evidence.py"))
    named = set(re.findall(r"<!-- table (\w+)", text))
    assert named == set(evidence["TABLES"])
    kept = {path.stem for path in (ROOT / "scripts/benchmarks/results").glob("*.json")}
    assert kept == {file for file, _ in evidence["TABLES"].values()}


def test_every_benchmark_has_its_place_in_the_evidence() -> None:
    text = (ROOT / "docs/evidence.md").read_text()
    named = set(re.findall(r"`python -m scripts\.benchmarks\.(\w+)", text))
    assert named == {
        path.stem
        for path in (ROOT / "scripts/benchmarks").iterdir()
        if path.suffix == ".py" or (path / "__main__.py").exists()
    }


def test_the_columns_of_trials_csv_are_those_that_are_written(tmp_path: Path) -> None:
    run = Run(tmp_path)
    records.write_table(run, [], [], [])
    with open(run.table, newline="") as file:
        written = next(csv.reader(file))
    section = (
        (ROOT / "docs/reference/files.md").read_text().partition("## Columns of trials.csv")[2]
    )
    listed = [
        name
        for row in re.findall(r"^\| (`.+?) \|", section, flags=re.M)
        for name in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(listed) == sorted(written)


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=[*NAMES, "CONTRIBUTING.md"]
)
def test_scripts_and_extras_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"scripts\.benchmarks\.([a-z]\w*)", text):
        place = ROOT / "scripts" / "benchmarks" / name
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), (
            f"{page.name}: no {name}"
        )
    for name in re.findall(r"`(scripts/[\w./]+)[` ]", text):
        assert (ROOT / name).exists(), f"{page.name}: {name} is not there"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for group in re.findall(r"pip install '?\.\[([\w,]+)\]", text):
        assert set(group.split(",")) <= set(extras), f"{page.name}: pip install .[{group}]"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    left = [
        line
        for line in page.read_text().splitlines()
        if re.fullmatch(r"[A-Z]{4,}|.*\b(TODO|TBD|FIXME)\b.*", line)
    ]
    assert not left, f"{page.name}: {left[0]!r}"


def test_a_block_that_is_neither_run_nor_explained_is_seen() -> None:
    text = "a\n\n```rust\nfn main() {}\n```\n\n<!-- not run: it is a picture -->\n```text\nx\n```\n"
    found = list(blocks(text))
    assert [(block.language, block.skipped) for block in found] == [("rust", False), ("text", True)]
    # click's UsageError, which typer may bring along
    with pytest.raises(typer.BadParameter.__mro__[1]):
        command: Any = typer.main.get_command(cli.app)
        command.commands["search"].make_context("search", ["digits", "--nonsense"])
