"""What a program finds when it runs: its globals, its builtins, and facades in place of modules.

The runtime half of the policy; the gate (`safety.py`) looks at a program before it runs.
"""

from __future__ import annotations

import builtins
import importlib
import types
from collections.abc import Mapping
from typing import Any, NoReturn

from executor.safety import ALLOWED_MODULES, BANNED_NAMES, is_banned_attribute

# They reach attributes, or evaluate text, that the check of the program's own text has not seen.
_ONLY = {"io": {"BytesIO", "StringIO"}}
_LEFT_OUT = {
    "operator": {"attrgetter", "methodcaller"},
    "string": {"Formatter"},
    "typing": {"ForwardRef", "get_type_hints"},
}

# Codecs that `str.encode` would have to load from files, which can't be opened inside the wall.
_CODECS = ("ascii", "cp1252", "latin_1", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_8_sig", "unicode_escape")


def load_codecs() -> None:
    """Load the codecs that programs may use."""
    for codec in _CODECS:
        importlib.import_module(f"encodings.{codec}")


def program_globals(offered: dict[str, Any]) -> dict[str, Any]:
    """New globals for one call of a program. `offered`: its builtins, of `program_builtins`."""
    return {"__name__": "solution", "__builtins__": offered}


def program_builtins() -> dict[str, Any]:
    """The builtins that programs get: without the banned ones, with guarded attributes and imports of facades."""
    facades = _facades()
    offered = {name: value for name, value in vars(builtins).items() if name not in BANNED_NAMES}
    shared = {id(member) for facade in facades.values() for member in vars(facade).values()}
    for reader in (getattr, hasattr):
        offered[reader.__name__] = _Guard(reader, frozenset()).call
    for changer in (setattr, delattr):
        offered[changer.__name__] = _Guard(changer, frozenset(shared)).call
    offered["__import__"] = _Importer(facades).call
    offered["__build_class__"] = builtins.__build_class__
    return offered


# What is offered are bound methods: unlike functions and instances of classes, they have no attributes that could be set.


class _Guard:
    """One of the functions that reach an attribute by name, restricted to the names that `check` permits."""

    def __init__(self, function: Any, shared: frozenset[int]) -> None:
        self._function = function
        self._shared = shared

    def call(self, target: object, name: str, *rest: object) -> object:
        # The exact type: a subclass of str could answer differently when it is asked again.
        if type(name) is not str or is_banned_attribute(name) or id(target) in self._shared:
            raise AttributeError("attribute not allowed")
        return self._function(target, name, *rest)


class _Importer:
    """`__import__` of the facades."""

    def __init__(self, facades: dict[str, types.ModuleType]) -> None:
        self._facades = facades

    def call(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: tuple[str, ...] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        if level or name not in self._facades:
            raise ImportError(f"module not allowed: {name}")
        return self._facades[name] if fromlist else self._facades[name.partition(".")[0]]


class _Facade(types.ModuleType):
    """A module that can't be changed, neither by accident nor to remember something from one input to the next."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("modules can't be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("modules can't be changed")


def _facades() -> dict[str, types.ModuleType]:
    """Modules with the public, non-module members of the allowed ones: `json.codecs.open` is no way out."""
    facades: dict[str, types.ModuleType] = {}
    for name in ALLOWED_MODULES:
        module = importlib.import_module(name)
        facade = _Facade(name, module.__doc__)
        public = {key for key in vars(module) if not key.startswith("_")} | {*getattr(module, "__all__", ())}
        for key in _ONLY.get(name, public) - _LEFT_OUT.get(name, set()):
            if not isinstance(getattr(module, key), types.ModuleType):
                vars(facade)[key] = getattr(module, key)
        facades[name] = facade
    for name, inner in facades.items():
        parent, _, child = name.rpartition(".")
        if parent:
            vars(facades[parent])[child] = inner
    return facades
