"""An exported program's archive, looked through before torch opens it, and written anew with what
was looked at.

torch.export.load runs code in many ways: it unpickles (`data/weights/NAME.pt` for any
`models/NAME.json`, constants, sample inputs, the layout of torch 2.7), imports modules that a tree
specification names, evaluates sizes, and makes Python source out of node names. So every entry, key
and word must be one that an export writes. What torch reads is the archive written anew: whatever
another reader of the same zip file would see in it is not there.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from autoprune.errors import ModelError
from autoprune.formats._graph_words import check_graph

__all__ = ["rewritten"]

# Of the layout that torch.export.save writes; that of torch 2.7 is unpickled, and refused here
_MODEL, _SAMPLE = "models/model.json", "data/sample_inputs/model.pt"
# File -> the entries that it may name
_CONFIGS = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d{1,7}"),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d{1,7}"),
}
# Entries whose content is the same in every archive
_FIXED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
# All that may be in it; anything else might be unpickled
_ENTRY = re.compile(
    r"data/weights/weight_\d{1,7}|data/constants/tensor_\d{1,7}|\.data/(version|serialization_id)|"
    + "|".join(map(re.escape, (_MODEL, _SAMPLE, *_CONFIGS, *_FIXED)))
)
# The same of sample inputs, which are an archive of torch.save in the archive
_TORCH_SAVE = re.compile(
    r"data\.pkl|data/\d{1,7}|version|byteorder|\.data/serialization_id|\.(format_version|storage_alignment)"
)
# Bytes of a graph as JSON, at most: parsing takes many times as much memory
_TEXT = 256 * 2**20


def rewritten(data: bytes) -> bytes:
    """The same program as an archive in which nothing runs when `torch.export.load` reads it.

    Raises ModelError where the archive holds anything that `torch.export.save` does not write for a
    plain module.
    """
    entries = _entries(data, _ENTRY)
    for name, content in _FIXED.items():
        if entries.get(name) != content:
            raise ModelError(
                f"the program's {name} is {entries.get(name, b'missing')[:20]!r}, needed: "
                f"{content!r}"
            )
    _check_sample(entries.get(_SAMPLE, b""))
    named = {_MODEL, _SAMPLE, *_CONFIGS, *_FIXED, ".data/version", ".data/serialization_id"}
    for config, pattern in _CONFIGS.items():
        named |= _check_config(config, pattern, entries)
    if extra := sorted(set(entries) - named):
        raise ModelError(f"the program holds {extra[0]}, which nothing in it names")
    graph = check_graph(_json(_MODEL, entries))
    entries |= {_MODEL: json.dumps(graph).encode(), _SAMPLE: b""}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def _entries(data: bytes, allowed: re.Pattern[str]) -> dict[str, bytes]:
    """Content by name, without the folder that all are in. torch stores entries as they are, so
    nothing is inflated."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        listed = archive.infolist()
        names = [info.filename.partition("/")[2] for info in listed]
        if len({info.filename.partition("/")[0] for info in listed}) != 1 or len(set(names)) != len(
            names
        ):
            raise ModelError("the program's archive has entries twice, or outside its one folder")
        for info, name in zip(listed, names, strict=True):
            if not allowed.fullmatch(name):
                raise ModelError(
                    f"the program holds {name[:80]!r}, which no export writes; export it again "
                    "with autoprune"
                )
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise ModelError(f"the program's entry {name} is compressed, which no export does")
        if sum(info.file_size for info in listed) > len(data):
            raise ModelError("the entries of the program's archive overlap")
        if (broken := archive.testzip()) is not None:
            raise ModelError(f"the program's entry {broken} is damaged (checksum)")
        return {name: archive.read(info) for info, name in zip(listed, names, strict=True)}


def _json(name: str, entries: Mapping[str, bytes]) -> Any:
    if name not in entries:
        raise ModelError(f"the program has no {name}")
    if len(entries[name]) > _TEXT:
        raise ModelError(
            f"the program's {name} has {len(entries[name]) / 2**20:.0f} MiB; read are at most 256"
        )
    return json.loads(entries[name])


def _check_sample(sample: bytes) -> None:
    """Sample inputs are pickled; they are not needed here, but another program would unpickle
    them."""
    if sample:
        _entries(sample, _TORCH_SAVE)
        try:
            torch.load(io.BytesIO(sample), weights_only=True)
        except Exception as error:  # pickle's, zip's and torch's own kinds
            raise ModelError(
                "the program's sample inputs are not plain tensors but a pickle that runs code"
            ) from error


def _check_config(config: str, allowed: re.Pattern[str], entries: Mapping[str, bytes]) -> set[str]:
    """Names of the entries that hold the tensors of a config file; each must be raw bytes."""
    folder, named = config.rpartition("/")[0], set[str]()
    for tensor, payload in _json(config, entries)["config"].items():
        path = payload["path_name"]
        if payload["use_pickle"] is not False or not allowed.fullmatch(path):
            raise ModelError(
                f"the program's {config} stores {tensor[:80]!r} as a pickled object, which is not "
                "loaded"
            )
        entry = f"{folder}/{path}"
        sizes = [size["as_int"] for size in payload["tensor_meta"]["sizes"]]
        if entry not in entries or (not entries[entry] and math.prod(sizes)):
            raise ModelError(
                f"the program's {config} names {path} for {tensor[:80]!r}, which is missing or "
                "empty"
            )
        named.add(entry)
    return named
