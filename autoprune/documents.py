"""Text and JSON out of files that anybody may have written: regular files alone, of bounded length and depth."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from autoprune.errors import InputError

__all__ = ["json_of", "text_of"]


def text_of(path: Path, longest: int) -> str:
    """The text of a file of at most `longest` bytes. Raises InputError, which does not name the file.

    FileNotFoundError and IsADirectoryError pass: what to do then the caller knows. What is no regular file (a pipe, a
    device) is not opened for reading, which might never end.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, IsADirectoryError):
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(str(path))
        if not stat.S_ISREG(status.st_mode):
            raise InputError("this is no regular file; save what it holds to a file and give that")
        try:
            content = file.read(longest + 1)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}") from error
    if len(content) > longest:
        raise InputError(f"this file is larger than {longest // 1024:,} KiB, which nothing of its kind is")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not a text file in UTF-8 (byte {error.start})") from error


def json_of(text: str) -> Any:
    """The value of JSON text. Raises InputError, also for nesting and numbers without end."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError("this JSON is nested too deeply") from error
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError):
            raise InputError("this JSON has a number of too many digits") from error
        raise InputError(f"this is no JSON: {error}") from error
