"""Whether the files of a kept model are those that were written: their checksums lie in its
score.json."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from autoprune.exporting import artefact
from autoprune.files import check_safetensors, read_json
from autoprune.score import Score

__all__ = ["digests", "intact"]

# Of which the dense model has the second alone
_FILES = ("plan.json", "model.safetensors")


def digests(folder: Path) -> dict[str, Any]:
    """Checksum and size of every file of a kept model, for its score.json, which is written
    last."""
    return {name: artefact.digest(folder / name) for name in _FILES if (folder / name).is_file()}


def intact(folder: Path) -> bool:
    """Whether score.json can be read, the files are as it says, and no weight is NaN (masks may be
    infinite).

    A model that an earlier release has kept has no checksums: then its weights are only read.
    """
    try:
        record = read_json(folder / "score.json")
        Score.from_json(record)
        files = record.get("files", {})
        if any(
            (folder / name).is_symlink() or artefact.digest(folder / name) != known
            for name, known in files.items()
        ):
            return False
        weights = folder / "model.safetensors"
        return _finite(weights, weights.stat().st_mtime_ns, weights.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@functools.lru_cache(maxsize=512)
def _finite(path: Path, changed: int, size: int) -> bool:
    """Whether every weight is a number; looked at once as long as the file stays as it is."""
    try:
        check_safetensors(path)
        return not any(bool(torch.isnan(tensor).any()) for tensor in load_file(path).values())
    except Exception:  # safetensors raises a kind of its own for each way a file can be broken
        return False
