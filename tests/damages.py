"""Ways in which a file may be damaged."""

from __future__ import annotations

from pathlib import Path


def empty(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x11
    path.write_bytes(content)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def another_type(path: Path) -> None:
    path.write_text("[1]\n")


DAMAGES = (empty, torn, flipped, a_folder, another_type)
