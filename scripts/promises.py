"""Every promise of the README and what shows that it holds: runs the tests marked with it, prints a
table.

Run: .venv/bin/python scripts/promises.py [PROMISE ...]
A test is marked `@pytest.mark.promise("links")`; figures that no test can hold come from the
benchmark named beside. Exit status 1 where a promise has no test, or one that fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent

PROMISES = {  # name -> what is promised
    "reconstruction": "a trained plan is never worse than the same untrained; `sparse` pays or is "
    "not chosen",
    "pretrained": "a model that comes with weights is taken as it is; none is trained unasked "
    "unless it guesses",
    "milliseconds": "a budget in milliseconds and the same one in per cent choose the same plan",
    "training-paths": "paths that only training takes are followed, cut and proved, or refused by "
    "name",
    "trial-faults": "whatever goes wrong in a trial ends that trial with its reason, not the "
    "search",
    "verify": "`verify` measures every limit and figure it lists, or says that it could not",
    "probes": "why a technique left the search is in the journal, trials.csv and the run's log",
    "stages": "`share: stage` makes one decision for each stage, whatever wraps the model",
    "samplers": "a sampler that is offered does in this loop what its name says",
    "budgets": "a finished run says which budgets it can answer, and trains what another one needs",
    "slack": "what is left of a budget is spent",
    "options": "no option is accepted and ignored",
    "loaders": "every kind of data set and loader of torch.utils.data is taken",
    "recorded": "a search on recorded latencies repeats itself",
    "finished-run": "a finished run is not rewritten by a slip",
    "figures": "the figures that are shown agree with each other",
    "messages": "messages name the cause and the way out",
    "archives": "no code runs from a file that is loaded",
    "links": "nothing outside a run's folder is written, emptied or deleted",
    "journal": "a journal that cannot be read is never cut to nothing",
    "trust": "code outside the study at hand runs only where that is allowed; nothing is fetched",
    "user-code": "whatever the user's code raises is told with its place; none ends the search "
    "with status 0",
    "damaged-files": "a damaged file is made anew or named; never a traceback",
    "hostile-input": "hostile studies, plans, folders and disks: one clear paragraph, no hang",
    "leftovers": "nothing is left behind by a kill; signals end everything",
    "limits-of-time": "every stage keeps its time limit; --json prints JSON alone",
    "speed": "a thousand trials and a hundred blocks are handled in seconds",
}


def outcomes(wanted: list[str]) -> dict[str, list[tuple[str, str]]]:
    """For every promise the name and outcome of each test marked with it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "auto",
            "--dist",
            "worksteal",
            "-m",
            "promise",
        ]
        only = [f"--promise={name}" for name in wanted]
        subprocess.run([*command, f"--junitxml={report}", *only], cwd=ROOT, check=False)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for case in cases:
            ended = next(
                (kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None),
                "passed",
            )
            for each in case.iter("property"):
                if each.get("name") == "promise":
                    name = f"{case.get('classname')}::{case.get('name', '').partition('[')[0]}"
                    found[str(each.get("value"))].append((name, ended))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "promises", nargs="*", metavar="PROMISE", help=f"one of {', '.join(PROMISES)}; all of them"
    )
    wanted = parser.parse_args().promises
    if unknown := [name for name in wanted if name not in PROMISES]:
        parser.error(f"unknown promise {unknown[0]!r}; known: {', '.join(PROMISES)}")
    shown = outcomes(wanted)
    print("\n| promise | holds | tests |\n|---|---|---|")
    kept = True
    for name in wanted or PROMISES:
        cases = shown.get(name, [])
        failed = sorted({test for test, ended in cases if ended in ("failure", "error")})
        passed = sum(ended == "passed" for _, ended in cases)
        holds = "no test" if not passed else "FAILS" if failed else "yes"
        kept = kept and holds == "yes"
        tests = ", ".join(failed) or ", ".join(
            sorted({test.rpartition(".")[2] for test, _ in cases})
        )
        print(
            f"| {PROMISES[name]} (`{name}`) | {holds}, {passed} of {len(cases)} cases | {tests} |"
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
