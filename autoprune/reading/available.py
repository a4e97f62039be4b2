"""Which targets run on this machine, and why the others do not; torch is imported only to look for
a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from autoprune import plugins
from autoprune.errors import InputError
from autoprune.reading.bundled import bundled_paths, locate, read_target
from autoprune.reading.complaints import complaint
from autoprune.reading.references import check_plugin
from autoprune.reading.schema import TargetSchema
from autoprune.target import Target

__all__ = ["Found", "Setting", "every", "find"]


@dataclass(frozen=True)
class Setting:
    """One key of a target file: its value, its default, and what it may be."""

    key: str
    value: Any
    default: Any
    needed: str


@dataclass(frozen=True)
class Found:
    """A target, its file, every setting, and why it does not run here (None: it does, as far as can
    be told at once).

    Package, device and the runtime's access to it are looked at; no model is run.
    """

    target: Target
    path: Path
    settings: tuple[Setting, ...]
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `settings` by key."""
        settings = {
            setting.key: {
                "value": setting.value,
                "default": setting.default,
                "needed": setting.needed,
            }
            for setting in self.settings
        }
        here = {"path": str(self.path), "runs_here": self.reason is None, "reason": self.reason}
        return self.target.to_json() | here | {"settings": settings}


def every() -> list[Found]:
    """The bundled targets."""
    return [find(name) for name in bundled_paths("target")]


def find(name: str) -> Found:
    """A bundled target by name, or one in a YAML file. Raises StudyError."""
    folder = Path.cwd()
    document = read_target(name, folder)
    try:
        values = TargetSchema.model_validate(document.values).model_dump(exclude={"source"})
    except ValidationError as error:
        raise complaint(error, document, TargetSchema) from error
    target = Target(**values)
    fields = TargetSchema.model_fields
    settings = tuple(
        Setting(key, value, fields[key].default, _allowed_values(key))
        for key, value in values.items()
    )
    return Found(target, locate(name, "target", folder), settings, _reason(target, folder))


def _reason(target: Target, folder: Path) -> str | None:
    try:
        check_plugin("runtime", target.runtime, (folder,))
    except InputError as error:
        return str(error)
    if not target.device.startswith("cuda"):
        return None
    if target.runtime == "onnxruntime":
        import onnxruntime

        there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        return (
            None if there else "this onnxruntime has no CUDA provider: pip install onnxruntime-gpu"
        )
    import torch

    index = int(target.device.partition(":")[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return (
        None
        if index < count
        else f"no CUDA device {target.device!r} that torch can use"
        if count
        else "no CUDA device"
    )


def _allowed_values(key: str) -> str:
    """What a key may be, in words."""
    if key == "runtime":
        return ", ".join(plugins.names("runtime")) + " or my_module:Name"
    if key == "device":
        return "cpu, cuda or cuda:1, ..."
    annotation = TargetSchema.model_fields[key].annotation
    choices = [str(arg) for arg in get_args(annotation) if isinstance(arg, str)]
    return ", ".join(choices) or ("a whole number, at least 1" if annotation is int else "text")
