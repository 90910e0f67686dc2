"""Facts from the syntax tree of a program: normal form, shape, complexity, and whether it reads its input.

`inspect` runs in a child of a sandbox, which it may exhaust or crash: model-written text is never parsed outside. The
supervisor imports only `Facts` from here. Nothing here runs any part of the program.
"""

from __future__ import annotations

import ast
import builtins
import io
import math
import tokenize
from collections import Counter
from dataclasses import astuple, dataclass, fields
from typing import Any

from executor.newlines import plain_newlines

MAX_SHAPE = 2_000
"""Most characters of `Facts.shape`: computing a distance between shapes takes quadratic time."""
FACTS_BYTES = 1 << 20
"""Largest encoding of one program's facts, in bytes. Normal and stripped text are each bounded by the program's size,
times a factor for indentation and escapes."""

Fields = tuple[str, str, int, int, float, bool, str]


@dataclass(frozen=True)
class Facts:
    """Facts about one program, found without running it."""

    normal: str
    """The program without comments, docstrings and functions' annotations, in one layout, with its own names replaced
    by canonical ones. For equality only: equal texts are the same program but for names. The converse does not hold."""
    shape: str
    """One character per node, in pre-order, of the tree without docstrings, other strings that stand alone, and
    functions' annotations; at most MAX_SHAPE. For distances."""
    nodes: int
    """Number of all nodes of that tree. Contexts and argument lists as such are not counted."""
    complexity: int
    """Cognitive complexity, see `_cognitive`."""
    halstead: float
    """Halstead's effort, see `_halstead_effort`."""
    uses_input: bool
    """Whether `f` reads one of its parameters anywhere. False is certain; in doubt it is True."""
    stripped: str = ""
    """The program without the comments or docstrings that were to be removed; "" if none were to be."""

    @classmethod
    def of(cls, value: object) -> Facts:
        """Check the facts that a child stated. Raises ValueError."""
        names = [field.name for field in fields(cls)]
        if type(value) is not tuple or [type(part) for part in value] != [str, str, int, int, float, bool, str]:
            raise ValueError(f"not the facts of a program, which are {', '.join(names)}")
        found = cls(*value)
        if len(found.shape) > MAX_SHAPE or found.nodes < 0 or found.complexity < 0 or not found.halstead >= 0:
            raise ValueError("facts that no program can have")
        return found


def inspect(program: str, strip_comments: bool = False, strip_docstrings: bool = False) -> Fields:
    """Compute the fields of `Facts`.

    Raises what `ast.parse` does for text that is no program: SyntaxError, ValueError, RecursionError, MemoryError.
    """
    stripped = strip(program, strip_comments, strip_docstrings) if strip_comments or strip_docstrings else ""
    tree = ast.parse(program)
    _remove_idle_strings(tree)
    _remove_annotations(tree)
    letters = _letters(tree)
    numbers = len(letters), _cognitive(tree), _halstead_effort(tree)
    uses_input = _uses_input(tree)
    # The last, because it changes the tree.
    facts = Facts(_normal(tree), "".join(letters[:MAX_SHAPE]), *numbers, uses_input, stripped)
    result: Fields = astuple(facts)  # type: ignore[assignment]
    return result


# --------------------------------------------------------------------------------------------------------- stripping


def strip(program: str, comments: bool, docstrings: bool) -> str:
    """Remove comments, docstrings or both from `program`, and keep the layout of the rest.

    Where cutting them out of the text would change the program, the text is written anew from the tree, which removes
    the comments in any case. Raises as `inspect`.
    """
    text = plain_newlines(program)
    tree = ast.parse(text)
    cuts = _docstring_cuts(text, tree) if docstrings else []
    if docstrings:
        _remove_docstrings(tree)
    try:
        if comments:
            cuts += _comment_cuts(text)
        for start, end, put in sorted(cuts, reverse=True):
            text = _cut(text, start, end, put)
        if ast.dump(ast.parse(text)) == ast.dump(tree):
            return text.strip()
    except (SyntaxError, tokenize.TokenError):
        pass
    return ast.unparse(tree)


Cut = tuple[int, int, str]
"""Start, end, and the text to put there."""


def _cut(text: str, start: int, end: int, put: str) -> str:
    if put:
        return text[:start] + put + text[end:]
    before = text[:start].rstrip(" \t\f")
    if end == len(text) or text[end] == "\n":
        # Nothing follows: the space before goes too, and where nothing is before, the line.
        return before + text[end + 1 :] if before.endswith("\n") or not before else before + text[end:]
    return text[:start] + text[end:]


def _line_starts(text: str) -> list[int]:
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts


def _comment_cuts(text: str) -> list[Cut]:
    starts = _line_starts(text)
    return [
        (starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1], "")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]


def _docstring_cuts(text: str, tree: ast.Module) -> list[Cut]:
    starts, lines = _line_starts(text), text.split("\n")

    def offset(line: int, column: int) -> int:  # columns of a tree count bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    cuts = []
    for node in ast.walk(tree):
        if (found := _docstring(node)) is not None:
            assert found.end_lineno is not None and found.end_col_offset is not None
            start, end = offset(found.lineno, found.col_offset), offset(found.end_lineno, found.end_col_offset)
            alone = len(node.body) == 1 and not isinstance(node, ast.Module)  # type: ignore[attr-defined]
            cuts.append((start, end, "pass" if alone else ""))
    return cuts


def _docstring(node: ast.AST) -> ast.Expr | None:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr) and _is_idle_string(first):
            return first
    return None


def _remove_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if _docstring(node) is not None:
            body: list[ast.stmt] = node.body  # type: ignore[attr-defined]
            body[:1] = [] if len(body) > 1 or isinstance(node, ast.Module) else [ast.Pass()]


def _remove_idle_strings(tree: ast.Module) -> None:
    """Remove docstrings, and strings that stand alone elsewhere: they are often used as comments."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list) and body:
                left = [one for one in body if not _is_idle_string(one)]
                body[:] = left if left or name != "body" or node is tree else [ast.Pass()]


def _is_idle_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and type(node.value.value) is str


# ------------------------------------------------------------------------------------------------------- normal form

_BUILTINS = frozenset(dir(builtins))
_TELL_NAMES = frozenset({"__name__", "__qualname__", "__annotations__", "__kwdefaults__"})
# The attribute in which a node keeps a name.
_NAMED = {
    ast.Name: "id", ast.arg: "arg", ast.FunctionDef: "name", ast.AsyncFunctionDef: "name", ast.ExceptHandler: "name",
    ast.MatchAs: "name", ast.MatchStar: "name", ast.MatchMapping: "rest",
}  # fmt: skip


def _normal(tree: ast.Module) -> str:
    """Replace names, and return the tree as text. Changes the tree.

    A name that the program binds is renamed throughout, one name for one name, in the order of first appearance. That
    keeps the program's meaning for names whose meaning comes from the binding alone. So builtins, imports, attributes,
    keyword arguments and all that a class binds keep their names, and so does `f`.
    """
    nodes = list(_preorder(tree))
    kept = {"f"} | _BUILTINS
    bound: dict[str, None] = {}
    for node in nodes:
        kind = type(node)
        if kind is ast.Attribute:
            kept.add(node.attr)
            if node.attr in _TELL_NAMES:
                return ast.unparse(tree)
        elif kind is ast.keyword:
            kept.add(node.arg or "")
        elif kind is ast.alias:
            kept.add(node.asname or node.name.partition(".")[0])
        elif kind is ast.ClassDef:
            kept.add(node.name)
            kept.update(name for inner in ast.walk(node) if (name := _bound(inner)))
        elif name := _bound(node):
            bound[name] = None
    mine = [name for name in bound if name not in kept]
    # A name that is used here but bound nowhere could be one of the canonical ones.
    taken = kept | {node.id for node in nodes if type(node) is ast.Name and node.id not in bound}
    free = (name for number in range(len(mine) + len(taken)) if (name := f"v{number}") not in taken)
    new = dict(zip(mine, free, strict=False))
    for node in nodes:
        kind = type(node)
        if kind in _NAMED:
            old = getattr(node, _NAMED[kind])
            setattr(node, _NAMED[kind], new.get(old, old))
        elif kind is ast.Global or kind is ast.Nonlocal:
            node.names = [new.get(name, name) for name in node.names]
    return ast.unparse(tree)


def _bound(node: Any) -> str | None:
    kind = type(node)
    if kind is ast.Name and type(node.ctx) is ast.Load:
        return None
    return getattr(node, _NAMED[kind]) if kind in _NAMED else None


def _remove_annotations(tree: ast.Module) -> None:
    """Remove the annotations of functions, except where a decorator or the program itself could read them."""
    nodes = _preorder(tree)
    if any(isinstance(node, ast.Attribute) and node.attr == "__annotations__" for node in nodes):
        return
    for node in nodes:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.decorator_list:
            continue
        node.returns = None
        arguments = node.args
        for argument in [
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ]:
            if argument:
                argument.annotation = None


def _preorder(tree: ast.AST) -> list[Any]:
    found: list[Any] = []
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        found.append(node)
        stack += list(ast.iter_child_nodes(node))[::-1]
    return found


# ------------------------------------------------------------------------------------------------------ the measures

_NODE_TYPES = """
FunctionDef ClassDef Return Delete Assign AugAssign AnnAssign For While If With Match Raise Try Assert Import
ImportFrom Global Nonlocal Expr Pass Break Continue BoolOp NamedExpr BinOp UnaryOp Lambda IfExp Dict Set ListComp
SetComp DictComp GeneratorExp Yield YieldFrom Compare Call FormattedValue JoinedStr Constant Attribute Subscript
Starred Name List Tuple Slice And Or Add Sub Mult MatMult Div Mod Pow LShift RShift BitOr BitXor BitAnd FloorDiv
Invert Not UAdd USub Eq NotEq Lt LtE Gt GtE Is IsNot In NotIn comprehension ExceptHandler arg keyword alias withitem
match_case
"""
_CHARACTERS = [chr(code) for code in range(ord("A"), ord("z") + 1) if chr(code).isalpha()]
_CHARACTERS += [
    chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isalpha() and chr(code) not in "\"'?\\"
]
_LETTERS = dict(zip(_NODE_TYPES.split(), _CHARACTERS, strict=False))
_LETTERS |= {"AsyncFunctionDef": _LETTERS["FunctionDef"], "AsyncFor": _LETTERS["For"], "AsyncWith": _LETTERS["With"]}
_LETTERS |= {"TryStar": _LETTERS["Try"]}
_SILENT = (ast.expr_context, ast.arguments, ast.Module)


def _letters(tree: ast.Module) -> list[str]:
    """One letter per node, the same in every version of Python; "?" for a type of node without one."""
    return [_LETTERS.get(type(node).__name__, "?") for node in _preorder(tree) if not isinstance(node, _SILENT)]


_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _cognitive(tree: ast.Module) -> int:
    """Cognitive complexity after G. A. Campbell, "Cognitive Complexity: a new way of measuring understandability"
    (SonarSource, 2018), which `complexipy` computes, too.

    One for each `if`, conditional expression, loop, `except` and `match`, and one more for every level that it is
    nested in; one for each `elif`, each `else`, each sequence of like boolean operators, and each function that calls
    itself. The paper knows no comprehensions: here each `for` and each `if` of one counts one, without nesting.
    """
    total = 0
    recursive: set[ast.AST] = set()
    # node, depth of nesting, whether it is an `elif`, the functions around it
    stack: list[tuple[Any, int, bool, tuple[Any, ...]]] = [(tree, 0, False, ())]
    while stack:
        node, depth, is_elif, around = stack.pop()
        inner: list[ast.AST] = []  # a level deeper
        same: list[ast.AST] = list(ast.iter_child_nodes(node))
        if isinstance(node, (ast.If, *_LOOPS)):
            total += 1 if is_elif else 1 + depth
            same, inner = [node.test] if not isinstance(node, (ast.For, ast.AsyncFor)) else [node.iter], list(node.body)
            if isinstance(node, ast.If) and len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
                stack.append((node.orelse[0], depth, True, around))
            elif node.orelse:
                total += 1
                inner += node.orelse
        elif isinstance(node, (ast.IfExp, ast.ExceptHandler, ast.Match)):
            total += 1 + depth
            same, inner = [], same
        elif isinstance(node, ast.BoolOp):
            total += 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
        elif isinstance(node, _FUNCTIONS):
            if around:
                same, inner = [], same
            around = (*around, node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            recursive.update(one for one in around if getattr(one, "name", None) == node.func.id)
        stack += [(child, depth, False, around) for child in same]
        stack += [(child, depth + 1, False, around) for child in inner]
    return total + len(recursive)


def _halstead_effort(tree: ast.Module) -> float:
    """The effort of M. H. Halstead, "Elements of Software Science" (1977): difficulty times volume, that is
    (n1 / 2) (N2 / n2) * (N1 + N2) log2(n1 + n2), with n different and N all operators (1) and operands (2).

    Operands are names, attributes, parameters and constants; operators are all other nodes but argument lists, each by
    its type, so that an operator symbol, a call, an index and a `return` count alike. 0 where there is no operand.
    """
    operators: Counter[str] = Counter()
    operands: Counter[str] = Counter()
    for node in _preorder(tree):
        kind = type(node)
        if kind is ast.Constant:
            operands[f"{type(node.value).__name__} {node.value!r}"] += 1
        elif kind is ast.Name or kind is ast.arg:
            operands[getattr(node, _NAMED[kind])] += 1
        elif kind is ast.BinOp or kind is ast.UnaryOp or kind is ast.BoolOp or kind is ast.Compare or kind is ast.Expr:
            continue  # the symbol itself is a node, too
        elif not isinstance(node, _SILENT):
            operators[kind.__name__] += 1
            if kind is ast.Attribute:
                operands[node.attr] += 1
    if not operands or not operators:
        return 0.0
    n1, n2, all1, all2 = len(operators), len(operands), operators.total(), operands.total()
    return n1 / 2 * (all2 / n2) * (all1 + all2) * math.log2(n1 + n2)


def _uses_input(tree: ast.Module) -> bool:
    """Whether a name that is a parameter of `f` is read anywhere in `f`. True if it is unclear what `f` is."""
    found: Any = None
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) and statement.name == "f":
            found = None if statement.decorator_list else statement
        elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Lambda):
            if any(isinstance(target, ast.Name) and target.id == "f" for target in statement.targets):
                found = statement.value
        elif any(_bound(node) == "f" for node in ast.walk(statement)):
            found = None
    if found is None:
        return True
    arguments = found.args
    all_arguments = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    names = {argument.arg for argument in all_arguments if argument}
    body = found.body if isinstance(found.body, list) else [found.body]
    for node in (inner for statement in body for inner in ast.walk(statement)):
        target = node.target if isinstance(node, ast.AugAssign) else node
        if (
            isinstance(target, ast.Name)
            and target.id in names
            and (target is not node or isinstance(target.ctx, ast.Load))
        ):
            return True
    return False
