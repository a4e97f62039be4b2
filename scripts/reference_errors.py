"""The page of error messages: every text that is raised in autoprune, read from its source."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reference_advice import ADVICE

from autoprune import errors

ROOT = Path(__file__).parent.parent / "autoprune"
KINDS = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.AutopruneError)
}
OTHERS = {"error": "StudyError", "ValueError": "ValueError"}
CONSTANTS: dict[str, set[str]] = {}  # names in capitals -> what they are, anywhere

STAGES = {  # heading, and the commands and functions that meet it -> where the source of it lies
    ("Reading a study or a target", "every command with a STUDY or TARGET, `search`"): (
        "config",
        "reading",
        "target",
        "plugins",
    ),
    ("Options and arguments", "the command line and the Python functions themselves"): (
        "api",
        "arguments",
        "cli",
        "options",
        "outcome",
    ),
    ("Model, data, loss and metric", "`check`, `search`, `sensitivity`, `prune`, `measure`"): (
        "subject",
        "task",
        "training",
        "zoo",
    ),
    ("Groups and the search space", "`check`, `search`, `groups`, `prune`"): (
        "group",
        "pruning",
        "space",
    ),
    ("Plans", "`prune`"): ("plan", "plans", "pruning/pruner", "reading/plan_file"),
    ("Criteria, techniques and reconstruction", "`search`, `prune`"): (
        "pruning/calibration",
        "pruning/criteria",
        "pruning/importance",
        "pruning/reconstruction",
        "pruning/techniques",
    ),
    ("Measuring and runtimes", "`measure`, `check`, `search`, `verify`"): (
        "measuring",
        "quantities",
    ),
    ("Training", "`search`, `prune`, `export --train`"): ("training/judging", "training/loop"),
    ("Searching, and the folder of a run", "`search`, `sensitivity`, `export`"): (
        "reading/resume",
        "reading/recorded",
        "run",
        "score",
        "searching",
        "study",
    ),
    ("Exporting, loading and verifying", "`export`, `load`, `verify`, `prune`"): (
        "exporting",
        "formats",
    ),
    ("Files and your own code", "anything that reads a file or runs code of yours"): ("",),
}


_BELOW = """\
Below is every message, by where it is met. `‹name›` stands for what came; a hint
`(did you mean ...?)` may follow a name. Errors of a study begin with file, line and key; an error
in your code ends with its place. Of a message of more than 500 characters the middle is left out.
The text of a `ValueError` stands inside a message of another kind. The last column is empty where
the message says what to do. Why a group is refused is no error: `autoprune check` lists it.
"""


@dataclass(frozen=True, order=True)
class Message:
    """One text, with ‹placeholders›, of one kind, met at one stage."""

    stage: int
    kind: str
    text: str


def page() -> str:
    """The whole page."""
    found = sorted(set(messages()), key=lambda each: (each.stage, each.kind, each.text.lower()))
    unused = [text for text in ADVICE if not any(each.text.startswith(text) for each in found)]
    if unused:
        raise SystemExit(
            f"scripts/reference_advice.py has advice for what is raised no more: {unused[0]!r}"
        )
    text = _kinds()
    for number, (heading, met) in enumerate(STAGES):
        rows = [each for each in found if each.stage == number]
        if rows:
            text += f"\n## {heading}\n\nMet by {met}.\n\n"
            text += "| message | kind | what it means, what to do |\n|---|---|---|\n"
            text += "".join(
                f"| {_cell(each.text)} | `{each.kind}` | {_advice(each.text)} |\n" for each in rows
            )
    return text


def _kinds() -> str:
    text = (
        "# Errors\n\nEvery error that is raised on purpose is an `AutopruneError`: one paragraph "
        "that says what came, what is needed and\nwhat to do; on the command line it ends with the "
        "exit status.\n\n"
        "| kind | exit status | what it means |\n|---|---:|---|\n"
    )
    for name, kind in KINDS.items():
        meaning = " ".join((inspect.getdoc(kind) or "").split())
        text += f"| `{name}` | {kind.exit_status} | {meaning} |\n"
    return f"{text}\n{_BELOW}"


def messages() -> Iterator[Message]:
    """Every text that is raised, in the order of the files."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
    CONSTANTS.clear()
    for tree in trees.values():
        _note_constants(tree)
    for path, tree in trees.items():
        inside = str(path.relative_to(ROOT).with_suffix(""))
        for kind, text in _raised(tree):
            if len(re.findall(r"[a-z]{2,}", re.sub("‹.*?›", "", text))) >= 2:
                yield Message(_stage(inside), kind, text)


def _note_constants(tree: ast.Module) -> None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id.isupper():
                    CONSTANTS.setdefault(target.id, set()).add(str(node.value.value))


def _stage(inside: str) -> int:
    """The place of a source file among the stages: by the longest beginning that fits."""

    def fit(parts: tuple[str, ...]) -> int:
        fits = [part for part in parts if not part or f"{inside}/".startswith(f"{part}/")]
        return max(map(len, fits), default=-1)

    lengths = [fit(parts) for parts in STAGES.values()]
    return lengths.index(max(lengths))


def _raised(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Kind and text of each error that is made in a file."""
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef):
            continue
        if scope.name == "_message":  # what a schema says of a value
            for node in ast.walk(scope):
                if isinstance(node, ast.Return) and isinstance(node.value, ast.JoinedStr):
                    yield "StudyError", _template(node.value)
        for node in ast.walk(scope):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            name = _called(node.func)
            kind = name if name in KINDS else OTHERS.get(name)
            if kind is None or (name == "error" and not _of_document(node.func)):
                continue
            for text in _texts(node.args[0], scope):
                yield kind, text


def _called(function: ast.AST) -> str:
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""


def _of_document(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and ast.unparse(function.value) in (
        "document",
        "self",
    )


def _texts(argument: ast.expr, scope: ast.FunctionDef) -> Iterator[str]:
    """The texts that an argument may be; of a local name what is assigned to it."""
    if not isinstance(argument, ast.Name):
        yield _template(argument)
        return
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == argument.id for target in node.targets
        ):
            branches = (
                (node.value.body, node.value.orelse)
                if isinstance(node.value, ast.IfExp)
                else (node.value,)
            )
            yield from map(_template, branches)


def _template(node: ast.expr) -> str:
    """A text with ‹name› for each of its values."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + _template(node.right)
    value = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(value, ast.Call) and _called(value.func) == "nearest":
        return ""
    if isinstance(value, ast.IfExp) and isinstance(value.body, ast.JoinedStr | ast.Constant):
        return _template(value.body)
    name = _called(value)
    if len(CONSTANTS.get(name, ())) == 1:
        return next(iter(CONSTANTS[name]))
    return f"‹{_name(value)}›"


def _name(node: ast.expr) -> str:
    """What a value is, in a word or two."""
    if isinstance(node, ast.Name):
        return node.id.strip("_").lower().replace("_", " ")
    if isinstance(node, ast.Attribute):
        if node.attr == "__name__":
            return "type"
        return node.attr.strip("_").replace("_", " ")
    if isinstance(node, ast.Call):
        return _name_of_call(node)
    if isinstance(node, ast.Subscript):
        key = node.slice
        named = isinstance(key, ast.Constant) and isinstance(key.value, str)
        return str(key.value) if named else _name(node.value)  # type: ignore[attr-defined]
    if isinstance(node, ast.BoolOp):
        return _name(node.values[0])
    if isinstance(node, ast.BinOp):
        return _name(node.left)
    if isinstance(node, ast.IfExp):
        return _name(node.body)
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return _name(node.generators[0].iter)
    return "value"


def _name_of_call(node: ast.Call) -> str:
    name = _called(node.func)
    if name in ("of", "getattr"):
        return "error"
    if name == "join" and node.args:
        return _name(node.args[0])
    if name == "len":
        return f"number of {_name(node.args[0])}"
    if isinstance(node.func, ast.Name) and node.args:
        plain = ("str", "repr", "sorted", "tuple", "list", "paragraph", "brief", "_brief", "type")
        return _name(node.args[0]) if name in plain else name.strip("_").replace("_", " ")
    if name == "get" and node.args and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    if name in ("split", "splitlines", "strip", "get", "numel", "fromkeys", "keys"):
        return _name(node.args[0] if name == "fromkeys" else node.func.value)  # type: ignore[attr-defined]
    return name.strip("_").replace("_", " ")


def _advice(text: str) -> str:
    """The longest beginning of `text` that has an advice."""
    fits = [start for start in ADVICE if text.startswith(start)]
    return ADVICE[max(fits, key=len)] if fits else ""


def _cell(text: str) -> str:
    """As one cell of a table in Markdown."""
    text = " ".join(text.split())
    return re.sub(r"([|*<])", r"\\\1", text)
