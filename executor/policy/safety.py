"""The gate: which programs are refused before they run.

This is not the wall. It keeps honest programs deterministic and refuses obvious mischief with a named reason; the wall
(`jail.py`) must hold without it. A program is judged by what it uses: code that never runs is left out first
(`rewriting.py`). Names that only the run knows meet guards there (`guards.py`), and facades of a few modules in place
of the modules (`facades.py`).

Runs in the sandbox: the process that supervises it never parses model text.
"""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from executor.policy import rewriting
from executor.policy.rewriting import GUARDED_ATTRIBUTES

ALLOWED_MODULES = (
    "__future__", "abc", "array", "ast", "base64", "binascii", "bisect", "cmath", "codecs", "collections",
    "collections.abc", "contextlib", "copy", "dataclasses", "decimal", "difflib", "enum", "fractions", "functools",
    "graphlib", "hashlib", "heapq", "io", "itertools", "json", "keyword", "math", "numbers", "operator", "pprint",
    "queue", "re", "statistics", "string", "struct", "sys", "textwrap", "typing", "unicodedata", "zlib",
)  # fmt: skip
"""Dotted names, each as a whole: nothing is allowed because a part of its name is."""

OFFERED: dict[str, frozenset[str]] = {
    "ast": frozenset({"literal_eval"}),
    "codecs": frozenset({"decode", "encode"}),
    "hashlib": frozenset({
        "blake2b", "blake2s", "md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3_224", "sha3_256", "sha3_384",
        "sha3_512",
    }),
    "io": frozenset({"BytesIO", "StringIO"}),
    "sys": frozenset({
        "byteorder", "exit", "float_info", "getrecursionlimit", "getsizeof", "hash_info", "int_info", "intern",
        "maxsize", "maxunicode", "setrecursionlimit", "stderr", "stdin", "stdout", "version_info",
    }),
}  # fmt: skip
"""The names that are offered of these modules. Of all others, the public names are."""

BANNED_NAMES = frozenset({
    "__import__", "__builtins__", "__build_class__", "__loader__", "__module__", "__spec__", "breakpoint", "compile",
    "eval", "exec", "globals", "help", "locals", "open",
})  # fmt: skip

BANNED_ATTRIBUTES = frozenset({
    "_convert_", "ag_await", "ag_code", "ag_frame", "cr_await", "cr_code", "cr_frame", "cr_origin", "f_back",
    "f_builtins", "f_code", "f_globals", "f_lineno", "f_locals", "f_trace", "gi_code", "gi_frame", "gi_yieldfrom",
    "mro", "tb_frame", "tb_next",
})  # fmt: skip

_SPECIAL_METHODS = """
abs add and annotations bool bytes call cause ceil class complex contains context copy deepcopy delattr delitem dir
divmod doc enter eq exit float floor floordiv format ge get getattr getitem gt hash iadd iand ifloordiv ilshift imatmul
imod imul index init init_subclass int invert ior ipow irshift isub iter itruediv ixor le len length_hint lshift lt
match_args matmul members missing mod mul name ne neg new next notes or pos post_init pow qualname radd rand rdivmod
repr reversed rfloordiv rlshift rmatmul rmod rmul ror round rpow rrshift rshift rsub rtruediv rxor set set_name setattr
setitem slots str sub truediv trunc wrapped xor
"""
ALLOWED_DUNDERS = frozenset(f"__{name}__" for name in _SPECIAL_METHODS.split())
"""Special attributes that a program may name. Those that lead from a value to the interpreter are not among them."""

ALLOWED_DUNDER_NAMES = frozenset({"__class__", "__debug__", "__doc__", "__name__"})
"""Special names that a program may use by themselves."""


_ELSEWHERE = frozenset({"input", "queue", "sys"})
"""Names and modules that are harmless in a sandbox's form; elsewhere they wait, or change the process."""


class Unsafe(StrEnum):
    """A reason of the gate for refusing a program."""

    IMPORT = "import"
    """An import of a module that is not allowed."""
    NAME = "name"
    """A builtin that is not offered, such as `open` or `eval`."""
    ATTRIBUTE = "attribute"
    """An attribute that leads into the interpreter, such as `__globals__`, in the program or in a format string of
    it."""
    MUTATION = "mutation"
    """An assignment to an attribute or item of something imported, which the next input would find changed."""


def _is_dunder(name: str) -> bool:
    return name[:2] == "__" == name[-2:]


def is_banned_attribute(name: str) -> bool:
    """Whether an attribute of this name may not be touched."""
    return name in BANNED_ATTRIBUTES or (_is_dunder(name) and name not in ALLOWED_DUNDERS)


_WORD = re.compile(r"[A-Za-z_]\w*")
_HARMLESS_DUNDERS = ALLOWED_DUNDERS | ALLOWED_DUNDER_NAMES
_GUARDED = re.compile("|".join(["case", *sorted(GUARDED_ATTRIBUTES)]))
_SUSPICIOUS = BANNED_NAMES | BANNED_ATTRIBUTES | GUARDED_ATTRIBUTES | {"case", "import"}


def compile_checked(program: str, mode: str = "exec", pruned: bool = True) -> types.CodeType | tuple[Unsafe, str]:
    """Compile the program (with the mode `eval`, an expression) with guards; or return the objection of `check`.

    A program that the gate would refuse is `pruned` first: parts that never run are left out. Only for a text that is a
    whole program. Raises what `compile` does: SyntaxError, ValueError, RecursionError, MemoryError.
    """
    compiled: Any = program
    if not _is_plain(program):
        tree = ast.parse(program, mode=mode)
        found, changed = _check(tree), False
        if found and pruned and isinstance(tree, ast.Module):
            changed = rewriting.prune(tree, ALLOWED_MODULES)
            found = _check(tree) if changed else found
        if found:
            return found
        guarded = _GUARDED.search(program) or not program.isascii()
        # Otherwise the text itself: a tree that comes from outside is looked at once more.
        if (guarded and rewriting.guard(tree)) or changed:
            compiled = tree
    code: types.CodeType = compile(compiled, "<program>", mode, dont_inherit=True)
    return code


def _is_plain(program: str) -> bool:
    """Whether `check` can have no objection of weight, since the text holds no word that it could object to.

    Most programs that import nothing are plain, and this takes a tenth of the time. (A bare `__add__` passes here:
    where nothing of that name is bound, it is a NameError.) Beyond ASCII it can't be seen so easily what Python takes
    for which word.
    """
    if not program.isascii():
        return False
    words = set(_WORD.findall(program))
    return words.isdisjoint(_SUSPICIOUS) and not any(
        word.startswith("__") and word.endswith("__") and word not in _HARMLESS_DUNDERS for word in words
    )


def check(program: str, strict: bool = False) -> tuple[Unsafe, str] | None:
    """The first thing in `program` that the policy refuses, with the name concerned; None for an acceptable program.

    `strict`: what never runs here counts, too, and so do imports that may fail, standard input, and what waits: for a
    program that is to run elsewhere.
    Raises what `ast.parse` does for text that is no program: SyntaxError, ValueError, RecursionError, MemoryError.
    """
    tree = ast.parse(program)
    found = _check(tree, strict)
    if found and not strict and rewriting.prune(tree, ALLOWED_MODULES):
        found = _check(tree)
    return found


def _check(tree: ast.AST, strict: bool = False) -> tuple[Unsafe, str] | None:
    names = _Names(strict)
    nodes: list[Any] = [tree]
    for node in nodes:  # it grows meanwhile
        kind = type(node)
        if kind in _LEAVES:
            continue
        if kind in _LOOK and (refused := _LOOK[kind](node, names)):
            return refused
        for value in vars(node).values():
            if type(value) is list:
                nodes += value
            elif type(value) not in _LEAVES:
                nodes.append(value)
    return names.verdict()


# Nodes and values below which there is nothing to see.
_LEAVES = frozenset({
    ast.Load, ast.Store, ast.Del, ast.Pass, ast.Break, ast.Continue, *ast.operator.__subclasses__(),
    *ast.cmpop.__subclasses__(), *ast.boolop.__subclasses__(), *ast.unaryop.__subclasses__(),
    str, bytes, int, float, complex, bool, type(None), type(...),
})  # fmt: skip


class _Names:
    """Names of one program: what it binds, what it imports, and which uses have to be looked at once that is known."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.bound: set[str] = set()
        self.imported: dict[str, str] = {}
        """The module of each."""
        self.optional: set[int] = set()
        """Statements that may fail to import, by their ids: the program goes on without."""
        self.reads: list[tuple[str, str]] = []
        """Attributes that are read of a name, where that could be the name of a module offered in part."""
        self.suspects: list[str] = []
        self.changed: list[str] = []

    def offers(self, module: str | None) -> bool:
        """Whether a program may import it."""
        return module in ALLOWED_MODULES and not (self.strict and module in _ELSEWHERE)

    def verdict(self) -> tuple[Unsafe, str] | None:
        for name in self.suspects:
            # A program may call its own variable `input`, and write `__radd__ = __add__`.
            if name not in ALLOWED_DUNDER_NAMES and name not in self.bound:
                return Unsafe.NAME, name
        for name in sorted((self.bound | set(self.imported)) & BANNED_NAMES):
            if _is_dunder(name):
                return Unsafe.NAME, name
        for name, attribute in self.reads:
            module = self.imported.get(name, "")
            if module in OFFERED and attribute not in OFFERED[module] and name not in self.bound:
                return Unsafe.ATTRIBUTE, f"{module}.{attribute}"
            if attribute == "__dict__" and name not in self.bound:
                return Unsafe.ATTRIBUTE, attribute
        for name in self.changed:
            if name in self.imported and name not in self.bound:
                return Unsafe.MUTATION, name
        return None


_Found = tuple[Unsafe, str] | None
_FIELD = re.compile(r"\{([^{}]*)")
_IMPORT_ERROR = re.compile(r"\b(ImportError|ModuleNotFoundError|Exception|BaseException)\b")
_FIELD_ATTRIBUTE = re.compile(r"\.\s*(\w+)")


def _look_at_attribute(node: ast.Attribute, names: _Names) -> _Found:
    if is_banned_attribute(node.attr) and node.attr != "__dict__":
        return Unsafe.ATTRIBUTE, node.attr
    if isinstance(node.value, ast.Name):
        names.reads.append((node.value.id, node.attr))
    return None if type(node.ctx) is ast.Load else _look_at_change(node, names)


def _look_at_change(node: ast.Attribute | ast.Subscript, names: _Names) -> _Found:
    """Note the name at the root of something that is assigned to, or deleted."""
    if type(node.ctx) is not ast.Load:
        root: ast.expr = node
        while isinstance(root, (ast.Attribute, ast.Subscript)):
            root = root.value
        if isinstance(root, ast.Name):
            names.changed.append(root.id)
    return None


def _look_at_name(node: ast.Name, names: _Names) -> _Found:
    if type(node.ctx) is not ast.Load:
        names.bound.add(node.id)
    elif node.id in BANNED_NAMES or _is_dunder(node.id) or (names.strict and node.id in _ELSEWHERE):
        names.suspects.append(node.id)
    return None


def _look_at_import(node: ast.Import, names: _Names) -> _Found:
    for alias in node.names:
        if names.offers(alias.name):
            names.imported[alias.asname or alias.name.partition(".")[0]] = alias.name
        elif id(node) not in names.optional:
            return Unsafe.IMPORT, alias.name
    return None


def _look_at_import_from(node: ast.ImportFrom, names: _Names) -> _Found:
    if node.level or not names.offers(node.module):
        if id(node) in names.optional:
            return None
        return Unsafe.IMPORT, "." * node.level + (node.module or "")
    for alias in node.names:
        if alias.name not in OFFERED.get(node.module or "", {alias.name, "*"}) | {"*"}:
            return Unsafe.IMPORT, f"{node.module}.{alias.name}"
        names.imported[alias.asname or alias.name] = ""
    return None


def _look_at_try(node: ast.Try, names: _Names) -> None:
    if not names.strict and any(
        handler.type is None or _IMPORT_ERROR.search(ast.unparse(handler.type)) for handler in node.handlers
    ):
        names.optional |= {id(inner) for inner in node.body if isinstance(inner, (ast.Import, ast.ImportFrom))}


def _look_at_text(node: ast.Constant, names: _Names) -> _Found:
    if type(node.value) is str and "{" in node.value:
        for field in _FIELD.findall(node.value):
            for name in _FIELD_ATTRIBUTE.findall(field):
                if is_banned_attribute(name):
                    return Unsafe.ATTRIBUTE, name
    return None


def _look_at_pattern(node: ast.MatchClass, names: _Names) -> _Found:
    for name in node.kwd_attrs:
        if is_banned_attribute(name) or name in GUARDED_ATTRIBUTES:
            return Unsafe.ATTRIBUTE, name
    return None


def _look_at_binding(attribute: str) -> Callable[[Any, _Names], None]:
    def look(node: Any, names: _Names) -> None:
        names.bound.add(getattr(node, attribute) or "")

    return look


_LOOK: dict[type, Callable[[Any, _Names], _Found]] = {
    ast.Attribute: _look_at_attribute,
    ast.Subscript: _look_at_change,
    ast.Name: _look_at_name,
    ast.Constant: _look_at_text,
    ast.Import: _look_at_import,
    ast.ImportFrom: _look_at_import_from,
    ast.MatchClass: _look_at_pattern,
    ast.Try: _look_at_try,
    ast.arg: _look_at_binding("arg"),
    ast.FunctionDef: _look_at_binding("name"),
    ast.AsyncFunctionDef: _look_at_binding("name"),
    ast.ClassDef: _look_at_binding("name"),
    ast.ExceptHandler: _look_at_binding("name"),
    ast.MatchAs: _look_at_binding("name"),
    ast.MatchStar: _look_at_binding("name"),
    ast.MatchMapping: _look_at_binding("rest"),
}
