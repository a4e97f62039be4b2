"""Temporary folders that no kill leaves behind for good: in the run that is held, where its next
start clears them.

Without a run they lie in the system's place, each locked by its process; the next process removes
those whose lock is free. Torch-free, as the processes that measure are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["folder", "inside"]

# Of the environment: the processes that a run starts find it too
_PLACE = "AUTOPRUNE_SCRATCH"
_PREFIX = "autoprune-"
# A folder without a lock is being made, or a killed process did not get to it
_UNLOCKED_S = 3600.0


@contextlib.contextmanager
def inside(place: Path) -> Iterator[None]:
    """Meanwhile temporary folders lie in `place`, which is cleared before and removed
    afterwards."""
    shutil.rmtree(place, ignore_errors=True)
    before = os.environ.get(_PLACE)
    os.environ[_PLACE] = str(place.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PLACE]
        else:
            os.environ[_PLACE] = before
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new temporary folder that this user alone can read, removed at the end."""
    place = os.environ.get(_PLACE)
    if place is not None:
        os.makedirs(place, mode=0o700, exist_ok=True)
    else:
        _clear(Path(tempfile.gettempdir()))
    made = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place, ignore_cleanup_errors=True)
    with made as name, open(Path(name) / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Path(name)


def _clear(place: Path) -> None:
    """Remove this user's temporary folders whose process is gone."""
    for path in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.geteuid():
                continue
            if not (path / ".lock").is_file():
                if time.time() - path.stat().st_mtime > _UNLOCKED_S:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            descriptor = os.open(
                path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
