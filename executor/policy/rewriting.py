"""Changes to a program's tree before it is compiled: code that never runs is removed, and guards are put in.

A guard (`guards.py`) replaces each of the few forms that reach an attribute whose name is not in the text.

Removed is code that nothing in the program can reach: the block under `if __name__ == "__main__"` (a program's name is
`solution`), the bodies of functions that no name in the rest of the program refers to, such classes if they are derived
from a module that programs do not get (unit tests), and imports of names that nothing reads. So a program is judged by
what it uses. A name is the only way to a function, because the gate refuses `eval`, `globals` and the like.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from typing import Any

ATTRIBUTE = "<attribute>"
CLASSES = "<classes>"
"""Names of the guards among a program's builtins. No program can write them: they are not identifiers."""

GUARDED_ATTRIBUTES = frozenset({"format", "format_map", "__setattr__", "__delattr__", "__dict__"})
"""Attributes that lead to others by names which are known only at run time."""


# ------------------------------------------------------------------------------------------------ what never runs


def prune(tree: ast.Module, offered: Collection[str]) -> bool:
    """Remove from `tree` what never runs, and unused imports of modules that are not among `offered`.

    Returns whether it removed anything.
    """
    changed = False
    while _prune_once(tree, offered):
        changed = True
    return changed


def _prune_once(tree: ast.Module, offered: Collection[str]) -> bool:
    """Remove once. A part that is removed may hold the only use of another, so the caller repeats this."""
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    changed = False
    if "__name__" not in bound and any(_is_main_block(node) for node in tree.body):
        tree.body = [left for node in tree.body for left in _live(node)]
        changed = True
    if unused := _unused_classes(tree, offered):
        tree.body = [node for node in tree.body if node not in unused]
        changed = True
    used = _used(tree)
    for node in tree.body:
        if (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and node.name not in used
            and not _is_pass(node.body)
        ):
            node.body = [ast.copy_location(ast.Pass(), node)]
            changed = True
    for owner in [node for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]:
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(owner, name, None)
            if not isinstance(statements, list):
                continue
            left = [lighter for node in statements if (lighter := _without_unused(node, used, offered))]
            if left != statements:
                statements[:] = left or [ast.copy_location(ast.Pass(), statements[0])]
                changed = True
    return changed


def _live(node: ast.stmt) -> list[ast.stmt]:
    return node.orelse if isinstance(node, ast.If) and _is_main_block(node) else [node]


def _is_main_block(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(test := node.test, ast.Compare)
        and [type(operator) for operator in test.ops] == [ast.Eq]
        and sorted(ast.unparse(side) for side in (test.left, *test.comparators)) == ["'__main__'", "__name__"]
    )


def _used(tree: ast.Module) -> set[str]:
    """The names that are read, or declared global, in a part of the program that can run."""
    bodies: dict[str, list[Any]] = {"f": []}
    live: list[Any] = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            bodies.setdefault(node.name, []).extend(node.body)
            live += [node.args, *node.decorator_list, *([node.returns] if node.returns else [])]
            if node.decorator_list:  # it may have been registered somewhere
                live += bodies.pop(node.name)
        else:
            live.append(node)
    live += bodies.pop("f", [])
    used = {"f"}
    while live:
        for name in [name for part in live for name in _names(part)]:
            used.add(name)
        live = [part for name in used & set(bodies) for part in bodies.pop(name)]
    return used | {getattr(node, "name", "") for node in tree.body if getattr(node, "decorator_list", None)}


def _unused_classes(tree: ast.Module, offered: Collection[str]) -> list[ast.ClassDef]:
    """Classes that nothing else refers to, with a base from a module that is not among `offered`: unit tests, mostly.

    Any other base could take note of the class.
    """
    foreign = {
        one.asname or one.name.partition(".")[0]
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for one in node.names
        if (one.name if isinstance(node, ast.Import) else node.module) not in offered
    }
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.decorator_list and foreign & set(_names(ast.Tuple(node.bases))):
            others = ast.Module([other for other in tree.body if other is not node], [])
            if node.name not in _used(others):
                found.append(node)
    return found


def _names(part: ast.AST) -> Iterator[str]:
    for node in ast.walk(part):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            yield from node.names


def _is_pass(body: list[ast.stmt]) -> bool:
    return len(body) == 1 and isinstance(body[0], ast.Pass)


def _without_unused(node: ast.stmt, used: set[str], offered: Collection[str]) -> ast.stmt | None:
    """The statement without imports of unused names; None if nothing is left of it."""
    if isinstance(node, ast.Import):
        kept = [one for one in node.names if one.name in offered or (one.asname or one.name.partition(".")[0]) in used]
        if len(kept) < len(node.names):
            return ast.copy_location(ast.Import(kept), node) if kept else None
    elif isinstance(node, ast.ImportFrom) and node.module not in offered and not node.level:
        needed = any(one.name == "*" or (one.asname or one.name) in used for one in node.names)
        return node if needed else None
    return node


# ------------------------------------------------------------------------------------------------ guards


def guard(tree: ast.AST) -> bool:
    """Put calls of guards into `tree` where an attribute could be reached by a name that its text does not show.

    Returns whether there was any such place.
    """
    guarding = _Guarding()
    guarding.visit(tree)
    ast.fix_missing_locations(tree)
    return guarding.changed


class _Guarding(ast.NodeTransformer):
    """Changes a tree.

    `X.format`, and the other guarded attributes, become `<attribute>(X, "format")`. A class pattern with positions,
    which reads the attributes that the class's `__match_args__` names, gets a stand-in for the class that has been
    checked: `case C(a)` becomes `case M.c0(a)`, with `M = <classes>(lambda: C)` before the `match`. In the body of a
    class `M` is global: the names of the body are kept by whatever its metaclass has prepared.
    """

    def __init__(self) -> None:
        self.changed = False
        self._matches = 0
        self._in_class = False

    def visit(self, node: ast.AST) -> Any:
        """The changed node."""
        outer = self._in_class
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            self._in_class = isinstance(node, ast.ClassDef)
        try:
            return super().visit(node)
        finally:
            self._in_class = outer

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr not in GUARDED_ATTRIBUTES or not isinstance(node.ctx, ast.Load):
            return node
        self.changed = True
        call = ast.Call(ast.Name(ATTRIBUTE, ast.Load()), [node.value, ast.Constant(node.attr)], [])
        return ast.copy_location(call, node)

    def visit_Match(self, node: ast.Match) -> ast.AST | list[ast.AST]:
        self.generic_visit(node)
        patterns = [
            inner
            for case in node.cases
            for inner in ast.walk(case.pattern)
            if isinstance(inner, ast.MatchClass) and inner.patterns
        ]
        if not patterns:
            return node
        self.changed = True
        name = f"<match {self._matches}>"
        self._matches += 1
        nothing = ast.arguments([], [], None, [], [], None, [])
        classes: list[ast.expr] = [ast.Lambda(nothing, pattern.cls) for pattern in patterns]
        for place, pattern in enumerate(patterns):
            pattern.cls = ast.Attribute(ast.Name(name, ast.Load()), f"c{place}", ast.Load())
        call = ast.Call(ast.Name(CLASSES, ast.Load()), classes, [])
        assign = ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], call), node)
        return [*([ast.copy_location(ast.Global([name]), node)] if self._in_class else []), assign, node]
