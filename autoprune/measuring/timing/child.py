"""A process that measures: it ends with the one that started it, within a time limit, and its crash
is an error.

Both sides live here; torch is not imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from autoprune.errors import ModelError

__all__ = ["bound_to_parent", "run"]

# Of the environment: the process that a child ends with
_PARENT = "AUTOPRUNE_PARENT"
# From linux/prctl.h, which Python has no name for
_PR_SET_PDEATHSIG = 1
# Characters of the last line that a process said, for an error of one paragraph
_SAID = 300


def run(module: str, arguments: Sequence[str], what: str, limit_s: float) -> None:
    """Run `python -m module` in a session of its own and wait; it and all that it started end with
    this process.

    `what` names it in errors. Raises ModelError where it fails, crashes, is killed, or lasts longer
    than `limit_s`.
    """
    # how many threads there are is the target's business, whatever the environment says
    environment = {
        name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")
    }
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)
    environment[_PARENT] = str(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # A Ctrl-C on the terminal is heard by this process alone, which ends the other
        start_new_session=True,
    ) as process:
        try:
            _, said = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"{what} did not end within {limit_s:.0f} s: a call of the model hangs, or takes "
                "very long here"
            ) from error
        finally:  # also after Ctrl-C
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise ModelError(f"{what} {_ending(process.returncode, said)}")


def _ending(status: int, said: str) -> str:
    """How a process came to an end, by its exit status and the last line of what it said."""
    last = (said.strip().splitlines() or [""])[-1][:_SAID]
    if status > 0:
        return f"failed: {last or f'exit status {status}'}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    why = (
        "the system does that where memory runs out"
        if name == "SIGKILL"
        else "in the runtime or the model's code"
    )
    return f"was ended by {name}, {why}{f': {last}' if last else ''}"


def bound_to_parent() -> None:
    """Have this process end as soon as the one that started it has ended, however that was; first
    of all to be called.

    Outside Linux, which does that by itself, a thread looks once a second.
    """
    parent = int(os.environ.pop(_PARENT, 0))
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    # The parent may have ended before the signal was asked for: then none comes
    if os.getppid() != parent:  # it has ended before
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
