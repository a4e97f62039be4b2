"""Files that may be anything: a pipe, a device, a bomb. What is read is plain and not larger than
it should be."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import yaml

from autoprune.errors import InputError, brief

__all__ = [
    "check_safetensors",
    "json_of",
    "open_plain",
    "read_json",
    "read_mapping",
    "read_plain",
    "text_of",
]

# Bytes; a study has a few thousand, and PyYAML reads 100,000 a second
_YAML_LIMIT = 2**20
_VALUES = 1_000_000  # of a record, aliases written out
JSON_LIMIT = 64 * 2**20  # bytes; a run of 1,000 trials has records of 4 MB
# Bytes; a hundred thousand tensors, which take two seconds to read
_HEADER = 16 * 2**20


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a plain file. Raises OSError with the file's name for a pipe, a device or a
    folder, at once."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(
            errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "is no plain file", str(path)
        )
    return descriptor


def read_plain(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most `limit` bytes. Raises OSError."""
    with open(open_plain(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"has {size:,} bytes, at most {limit:,} are read", str(path))
        return file.read(size)


def text_of(path: Path, longest: int) -> str:
    """The text of a file of at most `longest` bytes. Raises InputError, which does not name the
    file.

    FileNotFoundError and IsADirectoryError pass: what to do then the caller knows.
    """
    try:
        return read_plain(path, longest).decode("utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"not a text file in UTF-8 (byte {error.start})") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        said = {
            errno.EINVAL: "this is no regular file; save what it holds to a file and give that",
            errno.EFBIG: f"this file is larger than {longest // 1024:,} KiB, which nothing of its "
            "kind is",
        }
        strerror = getattr(error, "strerror", None) or error
        raise InputError(
            said.get(getattr(error, "errno", 0), f"cannot be read: {strerror}")
        ) from error


def json_of(text: str) -> Any:
    """The value of JSON text. Raises InputError, also for nesting and numbers without end."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError("this JSON is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise InputError(f"this is no JSON: {error}") from error
    except ValueError as error:
        raise InputError("this JSON has a number of too many digits") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError with its name where it cannot be read, whatever the
    reason."""
    try:
        return json_of(text_of(path, JSON_LIMIT))
    except (OSError, InputError) as error:
        raise ValueError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file. Raises ValueError, with the file's name, for anything
    else."""
    try:
        content = read_plain(path, JSON_LIMIT if path.suffix == ".json" else _YAML_LIMIT)
        value = json.loads(content) if path.suffix == ".json" else yaml.safe_load(content)
        if not _is_bounded(value):
            raise ValueError("its aliases stand for more than a million values")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        raise ValueError(f"{path.name} cannot be read: {brief(problem)}") from problem
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must hold a mapping, it holds {type(value).__name__}")
    return value


def _is_bounded(value: Any) -> bool:
    """Whether a record is no more than `_VALUES` values when every alias is written out."""
    sizes: dict[int, int] = {}  # by identity: what several aliases name is one object

    def size(inner: Any) -> int:
        if not isinstance(inner, (dict, list)):
            return 1
        if id(inner) not in sizes:
            # While it is counted: one that holds itself has no end
            sizes[id(inner)] = _VALUES + 1
            parts = [*inner, *inner.values()] if isinstance(inner, dict) else inner
            sizes[id(inner)] = 1 + sum(size(part) for part in parts)
        return sizes[id(inner)]

    return size(value) <= _VALUES


def check_safetensors(path: Path) -> None:
    """Raise ValueError where `path` is no plain file, or its header is larger than any model's."""
    try:
        with open(open_plain(path), "rb") as file:
            start, size = file.read(8), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > size - 8:
        raise ValueError(f"{path} is no safetensors file, or is torn: it has {size} bytes")
    if length > _HEADER:
        raise ValueError(
            f"{path} has a header of {length / 2**20:.0f} MiB; at most {_HEADER // 2**20} are read"
        )
