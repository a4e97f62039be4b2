"""Files of an artefact made to run code, to reach other files or to exhaust: refused with one sentence.

Where torch itself runs the code, that is shown first: `without_guard` opens it as torch does, and the mark is there.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import onnx
import pytest
import torch
from torch import nn

from autoprune import plugins
from autoprune.errors import ModelError
from autoprune.exporting import artefact
from autoprune.files import read_mapping
from autoprune.formats.onnx import Onnx
from autoprune.formats.program import Program
from autoprune.formats.safetensors import Safetensors
from autoprune.task import Inputs

Entries = dict[str, bytes]
INPUTS = Inputs.of(torch.randn(3, 3, 4, 4))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1) + torch.tensor([1.0]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for name in plugins.names("format"):
        form = plugins.load("format", name)()
        form.save(Net().eval(), INPUTS, folder / form.filename)
    return folder


class Evil:
    """Unpickled, makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


def torch_saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def entries_of(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(
    path: Path, entries: Entries, root: str = "archive/", method: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(root + name, content)
    return path


def graph(change: Callable[[dict[str, Any]], object]) -> Callable[[Entries, Path], None]:
    """A change of the graph's JSON."""

    def apply(entries: Entries, _: Path) -> None:
        content = json.loads(entries["models/model.json"])
        change(content)
        entries["models/model.json"] = json.dumps(content).encode()

    return apply


def legacy(entries: Entries, mark: Path) -> None:
    for name in (
        "models/{}.json",
        "data/sample_inputs/{}.pt",
        "data/constants/{}_constants_config.json",
    ):
        entries[name.format("evil")] = entries[name.format("model")]
    entries["data/weights/evil.pt"] = torch_saved({"a": Evil(mark)})


def adding(name: str) -> Callable[[Entries, Path], None]:
    return lambda entries, mark: entries.update({name: torch_saved({"a": Evil(mark)})})


def pickled(
    config: str, path_name: str, pickling: Callable[[Evil], bytes]
) -> Callable[[Entries, Path], None]:
    def apply(entries: Entries, mark: Path) -> None:
        content = json.loads(entries[config])
        first = next(iter(content["config"].values()))
        first |= {"use_pickle": True, "path_name": path_name}
        entries[config] = json.dumps(content).encode()
        entries[f"{config.rpartition('/')[0]}/{path_name}"] = pickling(Evil(mark))

    return apply


def module_of(entries: Entries, mark: Path) -> str:
    """A module that makes the mark when it is imported."""
    (mark.parent / "evil_module.py").write_text(
        f"import os, enum\nos.mkdir({str(mark)!r})\nKind = enum.Enum('Kind', 'A')\n"
    )
    return "evil_module"


def tree(context: Callable[[str], dict[str, Any]]) -> Callable[[Entries, Path], None]:
    def apply(entries: Entries, mark: Path) -> None:
        content = json.loads(entries["models/model.json"])
        call = content["graph_module"]["module_call_graph"][0]["signature"]
        version, spec = json.loads(call["in_spec"])
        spec["children_spec"][1] |= context(module_of(entries, mark))
        call["in_spec"] = json.dumps([version, spec])
        entries["models/model.json"] = json.dumps(content).encode()

    return apply


ENUM = tree(
    lambda name: {"context": json.dumps([{"__enum__": True, "fqn": f"{name}:Kind", "name": "A"}])}
)
FACTORY = tree(
    lambda name: {
        "type": "collections.defaultdict",
        "context": {
            "default_factory_module": name,
            "default_factory_name": "Kind",
            "dict_context": "[]",
        },
    }
)


def named(entries: Entries, mark: Path) -> None:
    """An input whose name ends the line and begins another."""
    evil = json.dumps(f"x):\n    __import__('os').mkdir({str(mark)!r})\n    if (1").encode()[1:-1]
    entries["models/model.json"] = entries["models/model.json"].replace(b'"x"', b'"' + evil + b'"')


def expression(entries: Entries, mark: Path) -> None:
    code = f"__import__('os').mkdir({str(mark)!r})"
    text = entries["models/model.json"].decode()
    start = text.index('"expr_str": "') + len('"expr_str": "')
    end = text.index('"', start)
    entries["models/model.json"] = (text[:start] + json.dumps(code)[1:-1] + text[end:]).encode()


def guards(content: dict[str, Any], mark: str = "") -> None:
    content["guards_code"] = [f"__import__('os').mkdir({mark!r}) or True"]


def target(name: str) -> Callable[[Entries, Path], None]:
    def change(content: dict[str, Any]) -> None:
        content["graph_module"]["graph"]["nodes"][0]["target"] = name

    return graph(change)


def from_file(entries: Entries, mark: Path) -> None:
    """The operator that maps a file into memory, and makes it where there is none."""
    content = json.loads(entries["models/model.json"])
    nodes = content["graph_module"]["graph"]["nodes"]
    node = next(node for node in nodes if "conv2d" in node["target"])
    shared = [
        ("filename", {"as_string": str(mark)}),
        ("shared", {"as_bool": True}),
        ("size", {"as_int": 9}),
    ]
    node["target"] = "torch.ops.aten.from_file.default"
    node["inputs"] = [{"name": name, "arg": arg, "kind": 1} for name, arg in shared]
    entries["models/model.json"] = json.dumps(content).encode()


RUNS: dict[str, Callable[[Entries, Path], None]] = {  # torch runs the code of these
    "weights of another model": legacy,
    "weights as a state dict": adding("data/weights/model.pt"),
    "constants as a dictionary": adding("data/constants/model.pt"),
    "sample inputs": lambda entries, mark: entries.update(
        {"data/sample_inputs/model.pt": torch_saved((Evil(mark),))}
    ),
    "a pickled weight": pickled("data/weights/model_weights_config.json", "weight_0", torch_saved),
    "a pickled constant": pickled(
        "data/constants/model_constants_config.json", "tensor_0", torch_saved
    ),
    "an opaque constant": pickled(
        "data/constants/model_constants_config.json", "opaque_obj_0", pickle.dumps
    ),
    "an enumeration of a module": ENUM,
    "a default factory of a module": FACTORY,
    "a size that is code": expression,
    "an operator that makes a file": from_file,
}
REFUSED: dict[str, Callable[[Entries, Path], None]] = {
    "a name that is code": named,
    "a library": adding("data/aotinductor/model/model.so"),
    "a source file": adding("extra/evil.py"),
    "a second program": lambda entries, mark: entries.update(
        {"models/other.json": entries["models/model.json"]}
    ),
    "a tensor that nothing names": adding("data/weights/weight_99"),
    "a script object": pickled(
        "data/constants/model_constants_config.json", "custom_obj_0", pickle.dumps
    ),
    "an empty weight of a petabyte": lambda entries, _: entries.update(
        {"data/weights/weight_0": b""}
    ),
    "the loading of a library": target("torch.ops.load_library"),
    "a caller of methods": target("_operator.methodcaller"),
    "a loader of modules": target("math.__loader__.load_module"),
    "an attribute of torch": target("torch.hub.load"),
    "TorchScript's save": target("torch.ops.aten.save.default"),
    "a power of powers": graph(lambda content: sized(content, "Pow(9, Pow(9, Pow(9, Pow(9, 9))))")),
    "nesting in a size": graph(lambda content: sized(content, "(" * 3000)),
    "nesting in the graph": lambda entries, _: entries.update(
        {"models/model.json": b"[" * 200_000}
    ),
    "another version": lambda entries, _: entries.update({"archive_version": b"9"}),
    "another format": lambda entries, _: entries.update({"archive_format": b"old"}),
}


def sized(content: dict[str, Any], expression: str) -> None:
    values = content["graph_module"]["graph"]["tensor_values"]
    first = next(iter(values.values()))
    first["sizes"] = [{"as_expr": {"expr_str": expression, "hint": {"as_int": 2}}}]


def without_guard(path: Path) -> None:
    """Open and run a program as torch does."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            torch.export.load(path).module(check_guards=False)(*INPUTS.args)
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda: sys.modules.pop("evil_module", None)  # type: ignore[return-value]


@pytest.mark.promise("archives")
@pytest.mark.parametrize("attack", [*RUNS, *REFUSED])
def test_a_program_that_would_run_code_or_exhaust_is_refused(
    attack: str, saved: Path, tmp_path: Path, importable: Callable[[], None]
) -> None:
    entries, mark = entries_of(saved / "model.pt2"), tmp_path / "mark"
    (RUNS | REFUSED)[attack](entries, mark)
    path = write(tmp_path / "model.pt2", entries)
    if attack in RUNS:
        without_guard(path)
        assert mark.exists(), "the attack does nothing: it shows nothing"
        mark.rmdir() if mark.is_dir() else mark.unlink()
        importable()
    with pytest.raises(ModelError) as refused:
        Program().load(path)(INPUTS)
    assert not mark.exists() and len(str(refused.value)) <= 500
    assert "is not loaded: the program" in str(refused.value) or attack == "nesting in the graph"


@pytest.mark.promise("archives")
def test_guards_and_descriptions_of_a_program_are_left_out(saved: Path, tmp_path: Path) -> None:
    entries, mark = entries_of(saved / "model.pt2"), tmp_path / "mark"
    graph(lambda content: guards(content, str(mark)))(entries, mark)
    graph(lambda content: content["graph_module"]["metadata"].update(custom="[" * 9999))(
        entries, mark
    )
    Program().load(write(tmp_path / "model.pt2", entries))(INPUTS)
    assert not mark.exists()


@pytest.mark.promise("archives")
@pytest.mark.parametrize(
    "kind", ["compressed", "twice", "climbing", "two folders", "the layout of 2.7", "no archive"]
)
def test_an_archive_of_another_making_is_refused(kind: str, saved: Path, tmp_path: Path) -> None:
    entries, path, mark = entries_of(saved / "model.pt2"), tmp_path / "model.pt2", tmp_path / "mark"
    if kind == "compressed":
        entries["data/weights/weight_0"] = b"\0" * 2**24
        write(path, entries, method=zipfile.ZIP_DEFLATED)
    elif kind == "climbing":
        write(path, entries | {"../../evil": b"x"})
    elif kind == "the layout of 2.7":
        evil = torch_saved({"a": Evil(mark)})
        old = {
            f"serialized_{part}.pt": evil for part in ("state_dict", "constants", "example_inputs")
        }
        program = {
            "serialized_exported_program.json": entries["models/model.json"],
            "version": b"8.17",
        }
        write(path, old | program, root="")
        without_guard(path)
        assert mark.exists()
        mark.rmdir()
    elif kind == "no archive":
        path.write_bytes(pickle.dumps(Evil(mark)))
    else:
        write(path, entries)
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            root = "archive" if kind == "twice" else "other"
            archive.writestr(f"{root}/models/model.json", entries["models/model.json"])
    with pytest.raises(ModelError) as refused:
        Program().load(path)
    assert not mark.exists() and len(str(refused.value)) <= 500


@pytest.mark.promise("archives")
@pytest.mark.parametrize(
    "name", ["plain", "Residual", "DictInOut", "LSTM", "Transformer", "SeveralInputs", "UNet"]
)
def test_own_programs_of_every_kind_are_loaded(name: str, tmp_path: Path) -> None:
    member = models.member(name)
    model, inputs = member.build().eval(), member.inputs()
    Program().save(model, inputs, tmp_path / "model.pt2")
    with torch.no_grad():
        wanted = artefact.output_tensors(inputs.call(model))
    got = Program().load(tmp_path / "model.pt2")(inputs)
    assert all(artefact.error(a, b) <= 1e-5 for a, b in zip(wanted, got, strict=True))


@pytest.mark.promise("archives")
@pytest.mark.parametrize(
    "kind", ["external", "external in a branch", "domain", "context", "garbage", "pipe"]
)
def test_a_graph_that_reaches_outside_its_file_is_refused(
    kind: str, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    proto = onnx.load(saved / "model.onnx")
    tensor = proto.graph.initializer[0]
    if kind == "external in a branch":
        inner = onnx.helper.make_graph([], "inner", [], [], [tensor])
        proto.graph.node.append(
            onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
        )
        tensor = proto.graph.node[-1].attribute[0].g.initializer[0]
    if kind.startswith("external"):
        (tmp_path / "secret").write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, str(tmp_path / "secret"))
        tensor.ClearField("raw_data")
    if kind == "domain":
        proto.graph.node[0].domain = "evil.library"
    if kind == "context":
        proto.graph.node[0].domain, proto.graph.node[0].op_type = "com.microsoft", "EPContext"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\0garbage" if kind == "garbage" else proto.SerializeToString())
    with pytest.raises(ModelError, match=r"model\.onnx") as refused:
        Onnx().load(path)
    assert len(str(refused.value)) <= 500


def header(value: object, length: int | None = None, body: bytes = b"") -> bytes:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + body


HEADERS = {
    "a header of exabytes": header(b"{", 2**62),
    "a header of many megabytes": header(b" " * (17 * 2**20)),
    "nesting": header(b"[" * 100_000),
    "a size beyond 64 bits": header(
        {"a": {"dtype": "F32", "shape": [0, 2**64 - 1], "data_offsets": [0, 0]}}
    ),
    "nothing": b"",
    "a torn length": b"\1\2",
    "a pickle": pickle.dumps(Evil(Path("mark"))),
}


@pytest.mark.promise("archives")
@pytest.mark.parametrize("kind", HEADERS)
def test_a_bomb_of_a_header_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HEADERS[kind])
    with pytest.raises(ModelError, match=r"model\.safetensors") as refused:
        Safetensors.fill(Net(), path)
    assert len(str(refused.value)) <= 500
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        artefact.read_reference(path)


RECORDS = {
    "nested": b"[" * 20_000,
    "of a number of ten thousand digits": b'{"a": ' + b"1" * 10_000 + b"}",
    "of another type": b"[1]",
    "torn": b'{"a": ',
    "empty": b"",
    "of other bytes": b"\xff\xfe\x00",
}
ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)
)


@pytest.mark.promise("archives")
@pytest.mark.parametrize("name", ["score.json", "study.yaml"])
@pytest.mark.parametrize("kind", [*RECORDS, "aliases", "pipe", "folder"])
def test_a_bomb_of_a_record_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(ALIASES.encode() if kind == "aliases" else RECORDS[kind])
    with pytest.raises(ValueError, match=name) as refused:
        read_mapping(path)
    assert len(str(refused.value)) <= 500
