"""Files that may be anything: a pipe, a device, a bomb. What is read is plain and not larger than it should be."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

__all__ = ["check_safetensors", "open_plain", "read_json", "read_plain"]

JSON_LIMIT = 64 * 2**20  # bytes; a run of 1,000 trials has records of 4 MB
_HEADER = 16 * 2**20  # bytes; a hundred thousand tensors, which take two seconds to read


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a plain file. Raises OSError with the file's name for a pipe, a device or a folder, at once."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    return descriptor


def read_plain(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most `limit` bytes. Raises OSError."""
    with open(open_plain(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"has {size:,} bytes, at most {limit:,} are read", str(path))
        return file.read(size)


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError with its name where it cannot be read, whatever the reason."""
    try:
        return json.loads(read_plain(path, JSON_LIMIT))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read: it is nested too deep") from error
    except ValueError as error:  # JSON, UTF-8, or a number of thousands of digits
        raise ValueError(f"{path} is no JSON: {str(error)[:100]}") from error


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
        raise ValueError(f"{path} has a header of {length / 2**20:.0f} MiB; at most {_HEADER // 2**20} are read")
