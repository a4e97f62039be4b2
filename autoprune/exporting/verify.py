"""Check an artefact against its own record, in a process that knows nothing but the folder."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.errors import InputError, MissingPackage, VerificationError, brief
from autoprune.exporting import artefact
from autoprune.exporting.checks import checks
from autoprune.exporting.held import Check, Failed, Found
from autoprune.exporting.recorded import NotHere, Recorded, Skipped
from autoprune.exporting.trust import require_trust
from autoprune.files import read_mapping
from autoprune.quantities import is_runnable
from autoprune.run import Run
from autoprune.task import Task

__all__ = ["verify", "verify_in_fresh_process"]

_UNMEASURED: dict[str, Any] = {
    "passed": None,
    "detail": "not measured: the files are not those that were written",
    "figures": {},
}


def verify(
    folder: Path | str,
    *,
    task: Task | None = None,
    earlier: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Check the artefact in `folder` and write verification.json; gives its content.

    Every figure of score.json and every limit is held to what is found here; what cannot be, as
    milliseconds of another machine or the energy without a counter, stands under "unchecked" with
    the reason.

    Without `task` it is built from study.yaml; code of its own that the artefact names is run only
    with `trust`. Where the study was made in Python that cannot be: then the checks that need model
    or data stay open (`"passed": null`, named under `"open"`). What `earlier`, the content of a
    former verification.json, has closed is taken over.

    Raises VerificationError that lists every failure, whatever is wrong with the files; InputError
    where the folder is no artefact, or where the study is intact but its module or data is not on
    this machine.
    """
    path = artefact.require(folder)
    require_trust(path, trust or task is not None, f"autoprune verify {folder} --trust")
    recorded = Recorded(path, task)
    done = {
        check["name"]: check
        for check in (earlier or {}).get("checks", ())
        if check["passed"] is not None
    }
    results: list[dict[str, Any]] = []
    for name, check in checks(recorded):
        pointless = is_runnable(name.partition(" on ")[0]) and results[0]["passed"] is False
        results.append(
            done.get(name)
            or (_UNMEASURED | {"name": name} if pointless else _run_check(name, check))
        )
    result = {
        "version": 1,
        "passed": all(check["passed"] is not False for check in results),
        "open": [check["name"] for check in results if check["passed"] is None],
        "unchecked": _unchecked_figures(results),
        "checks": results,
    }
    unwritten = _write(path, result)
    _raise_failures(path, result)
    if unwritten:
        raise InputError(
            f"{path}: no check failed, but {artefact.VERIFICATION} cannot be written: {unwritten}"
        )
    return result


def verify_in_fresh_process(folder: Path | str, task: Task | None = None) -> dict[str, Any]:
    """Run `autoprune verify FOLDER --trust` as a process of its own; gives and raises what `verify`
    does.

    For artefacts that this process has just written: the code that they name has run in it.
    The checks that only `task` can close (its module and data live in this process) are made here
    afterwards.
    """
    path = artefact.require(folder)
    (path / artefact.VERIFICATION).unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "autoprune",
        "verify",
        str(path.resolve()),
        "--trust",
        "--json",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (ended.stderr or ended.stdout).strip()[-2000:]
    if ended.returncode == InputError.exit_status:
        raise InputError(said)
    try:
        result = read_mapping(path / artefact.VERIFICATION)
    except ValueError as problem:
        raise VerificationError(
            f"{path}: verification broke down, status {ended.returncode}: {said}"
        ) from problem
    _raise_failures(path, result)
    if ended.returncode:
        raise VerificationError(
            f"{path}: the verification ended with status {ended.returncode}: {said}"
        )
    return (
        verify(path, task=task, earlier=result) if result["open"] and task is not None else result
    )


def _unchecked_figures(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What none of the checks could hold to anything, with the reasons."""
    return {name: reason for check in found for name, reason in check.get("unchecked", {}).items()}


def _write(folder: Path, result: dict[str, Any]) -> OSError | None:
    """Write verification.json; the problem where the folder cannot be written to."""
    try:
        Run.write_json(folder / artefact.VERIFICATION, result)
    except OSError as problem:
        return problem
    return None


def _run_check(name: str, check: Check) -> dict[str, Any]:
    """One entry of verification.json. Whatever a broken file raises is a failed check, not a
    traceback."""
    passed: bool | None = False
    figures: dict[str, Any] = {}
    unchecked: Mapping[str, str] = {}
    try:
        detail, figures, unchecked = Found(*check())
        passed = True
    except Skipped as skipped:
        passed, detail = None, str(skipped)
    except Failed as failed:
        detail, figures = str(failed), failed.figures
    except NotHere as problem:
        raise problem.__cause__ or problem from None
    except MissingPackage:
        raise
    except InputError as problem:
        detail = str(problem)
    except Exception as problem:
        detail = f"{type(problem).__name__}: {brief(problem)}"
    plain = {key: _plain(figures[key]) for key in figures}
    entry = {"name": name, "passed": passed, "detail": detail, "figures": plain}
    return entry | ({"unchecked": dict(unchecked)} if unchecked else {})


def _plain(value: Any) -> Any:
    """A figure that JSON can hold."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _raise_failures(folder: Path, result: Mapping[str, Any]) -> None:
    failed = [check for check in result["checks"] if check["passed"] is False]
    if failed:
        lines = "".join(f"\n  {check['name']}: {check['detail']}" for check in failed)
        raise VerificationError(
            f"{folder} failed {len(failed)} of {len(result['checks'])} checks:{lines}"
        )
