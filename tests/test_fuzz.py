"""A seeded fuzzer: whatever is written in studies, targets, plans and options ends in one paragraph, or is taken."""

from __future__ import annotations

import copy
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoprune import config
from autoprune.errors import AutopruneError
from autoprune.reading.plan_file import read_plan

ROOT = Path(__file__).parents[1]
CORPUS = [
    *sorted((ROOT / "search_spaces").glob("*.yaml")),
    *sorted((ROOT / "autoprune" / "search_spaces").glob("*.yaml")),
    *sorted((ROOT / "tests" / "wrong_studies").glob("*.yaml")),
]
TARGETS = sorted((ROOT / "search_spaces" / "targets").glob("*.yaml"))
README = re.findall(r"```yaml\n(version: 1\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PLAN = {
    "version": 1,
    "choices": {
        "conv1:units": {"technique": "structured", "ratio": 0.5, "criterion": "l1"},
        "layer1.0:blocks": {"technique": "depth", "ratio": 1.0, "criterion": "l2"},
        "fc:weights": {"technique": "n_of_m(m=8)", "ratio": 0.25},
    },
}
TEXTS = [
    "", " ", "null", "~", "true", "no", "-1", "0", "1", "1.5", "1e999", "-.inf", ".nan", "0x7fffffffffffffffffff",
    "9" * 30, "9" * 10_000, "1" + "0" * 4000, "a" * 5000, "\x00", "\x1b[2J", "\u202e", "\ud7ff", "ünï", "\x85", "\t",
    "zoo:", ":", "a:b:c", "zoo:digits_cnn", "mine:build", "os:system", "../../etc/passwd", "/dev/zero", "/dev/stdin",
    ".", "a/" * 3000, "50%", "-50%", "1e400%", "nan%", "0.5ms", "99999999999999h", "1e30s", "300M", "latency on x",
    "latency on cpu_eager", "cuda:99999999999999999999", "cuda:0", "n_of_m(m=0)", "n_of_m(m=" + "(" * 500, "block(",
    "block(rows=1e9)", "structured(x=1)", "[]", "{}", "[1, 2]", "{a: b}", "*a", "&a x", "!!python/name:os.system",
    "!!binary a", "!!set {a}", "!!int x", "<<", "{<<: 1}", "? [a]", "- - - a", "|", ">", "'", '"', "%", "@", "`", "#",
    "[" * 100, "[" * 5000, "{a: " * 100, "{" * 5000, "{a: " * 30 + "1" + "}" * 30, "2026-01-01", "1_000", "0o17",
    "1:30", "postgresql://user:secret@host/db", "sqlite:///x", "x" * 300 + ".yaml", "study.yaml", "auto", "all",
    "stage",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 10**18, 10**400, -(10**30), 0.5, 1e308, -0.0, float("inf"), float("nan"), [], {}, [[]],
    [None], [{}], {"": None}, {"name": None}, {"name": "x", "args": {"a": [1] * 50}},
    {"name": "zoo:digits", "args": []}, ["l1", "l1"], [0.9, 0.1], [0, 1, 2], {"a": {"b": {"c": {}}}}, [[[[[[[[]]]]]]]],
    *TEXTS,
]  # fmt: skip


def mapping(text: str) -> Any:
    """The document in a study that is YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into nested mappings and lists."""
    if path:
        yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, below in inner:
        yield from places(below, (*path, key))


def changed(document: Any, draw: random.Random) -> Any:
    """A copy with one to three values replaced, renamed, added, taken away or put elsewhere."""
    made = copy.deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        known = list(places(made))
        if not known:
            return draw.choice(VALUES)
        *above, key = draw.choice(known)
        here = made
        for part in above:
            here = here[part]
        match draw.randrange(5):
            case 0 | 1:
                here[key] = copy.deepcopy(draw.choice(VALUES))
            case 2:
                del here[key]
            case 3 if isinstance(here, dict):
                here[draw.choice([f"{key}x", str(key).upper(), "", *TEXTS[:60]])] = here.pop(key)
            case _:
                *_, other = draw.choice(known)
                if isinstance(here, dict):
                    here[str(other)] = copy.deepcopy(here[key])
    return made


def torn(text: str, draw: random.Random) -> str:
    """The text with one to four of its characters, lines or words changed."""
    for _ in range(draw.randint(1, 4)):
        lines = text.split("\n")
        at, line = draw.randrange(len(text) + 1), draw.randrange(len(lines))
        match draw.randrange(8):
            case 0:
                text = (
                    text[:at]
                    + draw.choice(
                        ["\x00", "\t", "\x1b", "\u2028", "\ufeff", *":-[]{}#&*!|>'\"%@,\\"]
                    )
                    + text[at:]
                )
            case 1:
                text = text[:at] + text[at + draw.randint(1, 20) :]
            case 2:
                text = "\n".join([*lines[:line], *lines[line + 1 :]])
            case 3:
                text = "\n".join([*lines[: line + 1], *lines[line:]])
            case 4:
                text = "\n".join(
                    [
                        *lines[:line],
                        " " * draw.randint(0, 6) + lines[line].lstrip(),
                        *lines[line + 1 :],
                    ]
                )
            case 5:
                text = "\n".join(
                    [
                        *lines[:line],
                        lines[line].partition(":")[0] + ": " + draw.choice(TEXTS),
                        *lines[line + 1 :],
                    ]
                )
            case 6:
                text = re.sub(
                    r"\d+",
                    draw.choice(["-1", "0", "1e9", "9" * 400, "x"]),
                    text,
                    count=draw.randint(1, 3),
                )
            case _:
                text = text[:at]
    return text


class Fuzzer:
    """Feeds what it made to what reads it; notes everything but a short, placed AutopruneError, or an answer."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw = folder, random.Random(seed)
        self.studies = [*(path.read_text() for path in CORPUS), *README]
        self.documents = [read for text in self.studies if (read := mapping(text)) is not None]
        self.targets = [path.read_text() for path in TARGETS]
        self.taken, self.refused, self.wrong = 0, 0, list[str]()

    def feed(self, made: Any, read: Callable[[], object], says: str) -> None:
        """`says`: one of these words must be in the message."""
        began = time.process_time()
        try:
            read()
            self.taken += 1
        except AutopruneError as error:
            self.refused += 1
            text = str(error)
            if len(text) > 500 or not text.isprintable():
                self.wrong.append(
                    f"a message of {len(text)} characters: {text[:200]!r} for {made!r:.300}"
                )
            if not re.search(says, text):
                self.wrong.append(f"no place: {text[:300]!r} for {made!r:.300}")
        except BaseException as error:
            self.wrong.append(f"{type(error).__name__}: {error!s:.200} for {made!r:.500}")
        if (took := time.process_time() - began) > 2:
            self.wrong.append(f"{took:.1f} s for {made!r:.300}")

    def one(self) -> None:
        draw, path = self.draw, self.folder / "study.yaml"
        match draw.randrange(6):
            case 0 | 1:
                made: Any = torn(draw.choice(self.studies), draw)
                path.write_text(made, encoding="utf-8", errors="surrogatepass")
                self.feed(
                    made, lambda: yaml.safe_dump(config.read(path).resolved()), r"study\.yaml"
                )
            case 2:
                made = changed(draw.choice(self.documents), draw)
                if isinstance(made, dict):
                    self.feed(
                        made,
                        lambda: yaml.safe_dump(config.from_mapping(made).resolved()),
                        r"key '|name|\.yaml, line",
                    )
            case 3:
                made = self._options()
                self.feed(
                    made,
                    lambda: config.read("digits", **made).resolved(),
                    r"--(set|budget|timeout|trials|seed)|key '",
                )
            case 4:
                made, board = torn(draw.choice(self.targets), draw), self.folder / "board.yaml"
                board.write_text(made, encoding="utf-8", errors="surrogatepass")
                self.feed(made, lambda: config.target(str(board)).to_json(), r"board\.yaml")
            case _:
                made, plan = json.dumps(changed(PLAN, draw)), self.folder / "plan.json"
                made = torn(made, draw) if draw.random() < 0.5 else made
                plan.write_text(made, encoding="utf-8", errors="surrogatepass")
                self.feed(made, lambda: read_plan(plan).digest, r"plan\.json")

    def _options(self) -> dict[str, Any]:
        draw = self.draw
        keys = [
            ".".join(str(part) for part in path) for path in places(draw.choice(self.documents))
        ]
        key = draw.choice(
            [
                *keys,
                "search.trials",
                'space.layers."a.b".ratio',
                "target.runtime",
                "a.b.c.d.e",
                "",
                "..",
                '"',
            ]
        )
        quantity = draw.choice(
            [
                "latency",
                "flops",
                "size",
                "metric_drop",
                "latency on cpu_eager",
                "x",
                "",
                "latency on",
            ]
        )
        limit = draw.choice([*TEXTS, "50%", "2.5ms", "300M", "1MB"])
        made: dict[str, Any] = {
            "sets": [f"{key}={draw.choice(TEXTS)}"],
            "budget": [f"{quantity}={limit}"],
        }
        if draw.random() < 0.3:
            made[draw.choice(["sets", "budget"])] = [draw.choice(TEXTS)]
        if draw.random() < 0.3:
            made["trials"] = draw.choice([0, -1, 1, 10**30, 10**400])
        if draw.random() < 0.3:
            made["seed"] = draw.choice([-1, 0, 2**63, 2**64, 10**400])
        if draw.random() < 0.3:
            made["timeout"] = draw.choice(TEXTS)
        return {key: value for key, value in made.items() if draw.random() < 0.7}


def fuzzed(folder: Path, count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> Fuzzer:
    monkeypatch.chdir(folder)
    fuzzer = Fuzzer(folder, seed)
    for _ in range(count):
        fuzzer.one()
    return fuzzer


@pytest.mark.promise("hostile-input")
def test_a_thousand_mutants_end_in_one_paragraph_or_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzzer = fuzzed(tmp_path, 1000, 0, monkeypatch)
    assert not fuzzer.wrong, f"{len(fuzzer.wrong)} mutants: " + "\n".join(fuzzer.wrong[:20])
    assert fuzzer.refused > 500 and fuzzer.taken > 30


@pytest.mark.slow
@pytest.mark.promise("hostile-input")
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_more_mutants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    fuzzer = fuzzed(tmp_path, 3000, seed, monkeypatch)
    assert not fuzzer.wrong, f"{len(fuzzer.wrong)} mutants: " + "\n".join(fuzzer.wrong[:20])
