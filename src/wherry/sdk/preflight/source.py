"""
What a Python file does that can be known without running it. Pure.

Called by ``sdk.preflight.project`` for the script of a run and the modules of the project that it
imports.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Literal

#: always: as soon as the file is run. later: in a function, or under a condition. maybe: its
#: absence is caught, or only a type checker sees it.
When = Literal["always", "later", "maybe"]

_READERS = frozenset((
    "DatasetFolder", "DMatrix", "File", "fopen", "fromfile", "genfromtxt", "glob", "iglob",
    "image_dataset_from_directory", "ImageFolder", "imread", "listdir", "load", "load_iris",
    "load_model", "load_svmlight_file", "loadtxt", "memmap", "open", "read_bytes", "read_csv",
    "read_excel", "read_feather", "read_fwf", "read_json", "read_parquet", "read_pickle",
    "read_table", "read_text", "safe_load", "scan_csv", "scan_parquet", "scandir",
    "TextLineDataset", "TFRecordDataset",
))  # fmt: skip
_CATCHES = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_SUPPRESS = {"suppress"}


@dataclass(frozen=True)
class Import:
    """``from module import names`` or ``import module``; ``level``: how many dots."""

    module: str
    line: int
    when: When
    names: tuple[str, ...] = ()
    level: int = 0

    @property
    def top(self) -> str:
        """The first word of the module."""
        return self.module.partition(".")[0]


@dataclass
class Scan:
    """What was seen in one file."""

    imports: list[Import] = field(default_factory=list)
    paths: list[tuple[str, int]] = field(default_factory=list)  #: literal paths that it reads
    variables: list[tuple[str, int]] = field(default_factory=list)  #: that os.environ must have
    sets: set[str] = field(default_factory=set)  #: variables that it sets itself
    fits: list[int] = field(default_factory=list)  #: lines of ``.fit(``
    words: set[str] = field(default_factory=set)  #: every name and attribute
    texts: set[str] = field(default_factory=set)  #: every short string
    changes_path: bool = False  #: it changes ``sys.path``


#: Who names one of these finds modules by ways of its own.
_HOOKS = frozenset(("pyximport", "meta_path", "path_hooks", "install_import_hook", "addsitedir"))


def scan(tree: ast.AST) -> Scan:
    """What a parsed file does."""
    visitor = _Visitor()
    visitor.visit(tree)
    found = visitor.found
    found.changes_path = found.changes_path or bool(found.words & _HOOKS)
    return found


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found = Scan()
        self.when: When = "always"

    def _under(self, when: When, nodes: list[ast.stmt]) -> None:
        order = {"always": 0, "later": 1, "maybe": 2}
        before = self.when
        self.when = max(before, when, key=lambda w: order[w])
        for node in nodes:
            self.visit(node)
        self.when = before

    # --- where imports stand
    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, node.args):
            self.visit(part)
        self._under("later", node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Try(self, node: ast.Try) -> None:
        caught = any(_catches(handler) for handler in node.handlers)
        self._under("maybe" if caught else self.when, node.body)
        for handler in node.handlers:
            self._under("maybe" if caught else self.when, handler.body)
        self._under(self.when, [*node.orelse, *node.finalbody])

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item)
        quiet = any(_SUPPRESS & _words(item.context_expr) for item in node.items)
        self._under("maybe" if quiet else self.when, node.body)

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        words = _words(node.test)
        if "TYPE_CHECKING" in words:
            self._under("maybe", node.body)
            self._under(self.when, node.orelse)
        elif "__name__" in words:
            self._under(self.when, [*node.body, *node.orelse])
        else:
            self._under("later", [*node.body, *node.orelse])

    # --- what is looked for
    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.found.imports.append(Import(alias.name, node.lineno, self.when))
            self.found.words.update(alias.name.split("."))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        names = tuple(alias.name for alias in node.names)
        self.found.words.update((*names, *(node.module or "").split(".")))
        self.found.imports.append(
            Import(node.module or "", node.lineno, self.when, names, node.level)
        )

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if name == "fit" and isinstance(node.func, ast.Attribute):
            self.found.fits.append(node.lineno)
        if name == "setdefault" and _is_environ(getattr(node.func, "value", None)):
            self.found.sets.update(_literal(arg) for arg in node.args[:1])
        if name in _READERS and not _writes(node):
            target = node.args[0] if node.args else None
            if name in ("read_text", "read_bytes") and isinstance(node.func, ast.Attribute):
                target = node.func.value
            if text := _path(target):
                self.found.paths.append((text, node.lineno))
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if _is_environ(node.value) and (name := _literal(node.slice)):
            if isinstance(node.ctx, ast.Store):
                self.found.sets.add(name)
            elif self.when != "maybe":
                self.found.variables.append((name, node.lineno))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.found.words.add(node.attr)
        if node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id == "sys":
            self.found.changes_path = True
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.found.words.add(node.id)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and len(node.value) < 200:
            self.found.texts.add(node.value)


def _catches(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or bool(_CATCHES & _words(handler.type))


def _words(node: ast.AST) -> set[str]:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return names | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _literal(node: ast.AST | None) -> str:
    value = node.value if isinstance(node, ast.Constant) else ""
    return value if isinstance(value, str) else ""


def _path(node: ast.AST | None) -> str:
    """A literal path: ``"a/b"``, ``Path("a/b")``, ``Path("a") / "b"``; "" for anything else."""
    if isinstance(node, ast.Call) and _name(node.func) in ("Path", "PosixPath") and node.args:
        return _path(node.args[0])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        left, right = _path(node.left), _path(node.right)
        return f"{left}/{right}" if left and right else ""
    return _literal(node)


def _writes(node: ast.Call) -> bool:
    mode = _literal(node.args[1]) if len(node.args) > 1 else ""
    mode = next((_literal(k.value) for k in node.keywords if k.arg == "mode"), mode)
    opens = _name(node.func) in ("open", "File")
    return opens and any(c in mode for c in "wax")


def _is_environ(node: ast.AST | None) -> bool:
    return node is not None and _name(node) == "environ"
