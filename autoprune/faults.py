"""What code that is not ours raises, told in one line with its place; anything but Ctrl-C becomes
an error of ours."""

from __future__ import annotations

import functools
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

from autoprune.errors import AutopruneError, CodeError, paragraph

__all__ = ["PASS", "Fault", "boundary", "code", "draw_samples", "guard", "users_line"]

# What is not turned into a fault
PASS = (KeyboardInterrupt, GeneratorExit, AutopruneError)

_OURS = str(Path(__file__).parent)
_LIBRARIES = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")})
_SITE = re.compile(r"[/\\](site|dist)-packages[/\\]")
# In what torch makes of an error in a worker
_HANDED = "Original Traceback (most recent call last)"
_WORKER = re.compile(r"File \"([^\"]+)\", line (\d+)")


@dataclass(frozen=True)
class Fault:
    """What was raised, and where: the user's own line nearest to it, or where there is none the
    line that raised."""

    kind: str
    message: str
    place: str
    own: bool  # whether the line is the user's

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """The fault behind an exception; what a worker process handed on is read from its text."""
        kind, message = type(error).__name__, _message(error)
        lines = _lines(error)
        if _HANDED in message:
            lines = [(file, int(line)) for file, line in _WORKER.findall(message)]
            last = message.splitlines()[-1]
            kind, _, message = last.partition(": ") if ": " in last else (kind, "", last)
        if isinstance(error, SyntaxError) and error.filename:
            lines, message = [*lines, (error.filename, error.lineno or 0)], error.msg
        own = [line for line in lines if _is_users(line[0])]
        file, number = (own or lines or [("", 0)])[-1]
        place = f"{Path(file).name}, line {number}" if file else "no line is known"
        if isinstance(error, SystemExit):
            message = f"sys.exit({error.code!r})"
        return cls(
            kind.rpartition(".")[2], paragraph(message or "no message", 300), place, bool(own)
        )

    def __str__(self) -> str:
        return f"{self.kind}: {self.message} ({self.place})"


def _message(error: BaseException) -> str:
    """Whole also where an error of ours would shorten itself; the user's own kind may fail in
    telling it."""
    try:
        return (
            BaseException.__str__(error) if isinstance(error, AutopruneError) else str(error)
        ).strip()
    except Exception:
        return ""


def _lines(error: BaseException) -> list[tuple[str, int]]:
    """File and line from the outermost call inwards; of the cause where the error itself shows none
    of the user's."""
    seen: set[int] = set()
    outermost: list[tuple[str, int]] = []
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        lines = [
            (frame.f_code.co_filename, line)
            for frame, line in traceback.walk_tb(step.__traceback__)
        ]
        if any(_is_users(file) for file, _ in lines):
            return lines
        outermost = outermost or lines
        step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)
    return outermost


def _is_users(file: str) -> bool:
    if not file or file.startswith(("<", _OURS)) or _SITE.search(file):
        return False
    return not file.startswith(_LIBRARIES)


def users_line(frame: FrameType | None) -> str | None:
    """The user's own line that a frame is in, or was called from."""
    while frame is not None:
        if _is_users(frame.f_code.co_filename):
            return f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
        frame = frame.f_back
    return None


@contextmanager
def code(what: str) -> Iterator[None]:
    """Whatever is raised inside is a CodeError that says `what` of the user's failed, and at which
    line."""
    try:
        yield
    except PASS:
        raise
    except BaseException as error:
        raise CodeError(f"{what} failed with {Fault.of(error)}") from error


@contextmanager
def boundary() -> Iterator[None]:
    """As `code`, of what comes out of the user's files wherever they were called; a fault of ours
    passes."""
    try:
        yield
    except PASS:
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not Fault.of(error).own:
            raise
        raise CodeError(f"code of the study failed with {Fault.of(error)}") from error


def draw_samples(source: Iterable[Any], what: str) -> Iterator[Any]:
    """What `source` gives; a CodeError names `what` and, where it can be told, the sample that
    failed.

    A StopIteration out of a data set's own code would end the data early without a word.
    """
    with code(what):
        items = iter(source)
    while True:
        try:
            item = next(items)
        except PASS:
            raise
        except BaseException as error:
            sample = _sample(error)
            if isinstance(error, StopIteration) and sample is None and _HANDED not in str(error):
                return
            # a worker that is gone: its pipe breaks, or the socket file that it handed a tensor by
            # is no longer there
            gone = (
                isinstance(error, (ConnectionError, EOFError, FileNotFoundError))
                and not Fault.of(error).own
            )
            died = "a worker process of " if gone else ""
            where = f"{died}{what}" if sample is None else f"sample {sample} of {what}"
            raise CodeError(f"{where} failed with {Fault.of(error)}") from error
        yield item


def _sample(error: BaseException) -> str | None:
    """The index that the user's own data set was asked for."""
    frames: list[FrameType] = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in frames:
        names = frame.f_code.co_varnames
        if frame.f_code.co_name in ("__getitem__", "__getitems__") and _is_users(
            frame.f_code.co_filename
        ):
            return paragraph(repr(frame.f_locals.get(names[1])), 40) if len(names) > 1 else "?"
    return None


def guard(found: Any, what: str) -> Any:
    """A class of the user's own whose methods raise CodeError, with `what` and the line; anything
    else as it is."""
    return _guard_class(found, what) if isinstance(found, type) else found


@functools.cache
def _guard_class(found: type, what: str) -> type:
    methods: dict[str, Any] = {
        name: _guard_method(value, f"{what}, in {name},")
        for frame in reversed(found.__mro__)
        for name, value in vars(frame).items()
        if isinstance(value, FunctionType)
        and not name.startswith("_")
        and _is_users(value.__code__.co_filename)
    }
    if not methods:  # one of ours, named by its module
        return found
    names = {
        "__module__": found.__module__,
        "__qualname__": found.__qualname__,
        "__doc__": found.__doc__,
    }
    return type(found)(found.__name__, (found,), methods | names)


def _guard_method(method: Callable[..., Any], what: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with code(what):
            return method(*args, **kwargs)

    return call
