"""Guards: functions that check at run time the attribute names and the texts that a program computes.

The gate (`safety.py`) sees only the names that a program's text writes out. A guard stands in for a function that takes
a name or a text as a value: `getattr` and its like, `str.format`, positional class patterns, `eval` in the library. It
permits what the gate permits.

Programs get guards as bound methods and functions: no attribute that the policy permits leads on from either.
"""

from __future__ import annotations

import _string  # type: ignore[import-not-found]  # what `str.format` reads its texts with
import functools
import gc
import os
import sys
import types
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from executor.policy.rewriting import GUARDED_ATTRIBUTES
from executor.policy.safety import Unsafe, compile_checked, is_banned_attribute

_BUILTIN_METHODS = (
    types.BuiltinMethodType,
    types.MethodDescriptorType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
)
_FORMATS = frozenset({"format", "format_map"})
_MISSING = object()
_flags = type.__dict__["__flags__"].__get__  # `type`'s own: a metaclass may define `__flags__` as it likes
_HEAP_TYPE = 1 << 9
_ADDRESS_BITS = 47
"""Number of bits of the addresses that Linux gives to processes."""


class Refused(AttributeError):
    """A program used something that the policy forbids. It may catch this; otherwise its outcome is `unsafe`, with the
    text as the detail."""


def refuse(name: object) -> NoReturn:
    """Raise Refused for an attribute of this name."""
    raise Refused(f"{Unsafe.ATTRIBUTE}: {name if type(name) is str else type(name).__name__}")


def permitted(name: object) -> str:
    """Return `name` if a program may use an attribute of this name; raise Refused otherwise.

    It must be an exact str: a subclass could compare differently the next time.
    """
    if type(name) is not str or is_banned_attribute(name):
        refuse(name)
    return name


class Guards:
    """The guards of one interpreter."""

    def __init__(self) -> None:
        self.shared: set[int] = set()
        """Objects that programs may not change, by their ids."""
        self.offered: dict[str, Any] = {}
        """The builtins of programs: what is evaluated for them gets these."""
        self._older: set[int] = set()
        self._key = int.from_bytes(os.urandom(8), "big") >> (64 - _ADDRESS_BITS)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("guards can't be copied")

    def is_older(self, kind: type) -> bool:
        """Whether a class was there before any program."""
        return id(kind) in self._older

    def settle(self) -> None:
        """Take all classes that there are now for older than any program: what is made later is a program's own."""
        self._older = {id(kind) for kind in gc.get_objects() if isinstance(kind, type)}

    def identity(self, target: object, /) -> int:
        """`id` for programs: another number for each object, and another for the same object in each fork server.

        The addresses themselves are the same modulo 4096 in all servers for objects of more than 512 bytes.
        """
        return id(target) ^ self._key

    # ------------------------------------------------------------------------------------------ attributes by name

    def get(self, target: object, name: str, *default: object) -> Any:
        """`getattr` for programs."""
        if type(name) is str and name in GUARDED_ATTRIBUTES:
            try:
                return self.attribute(target, name)
            except AttributeError:
                if default:
                    return default[0]
                raise
        if default and type(name) is str and is_banned_attribute(name):
            return default[0]
        return getattr(target, permitted(name), *default)

    def has(self, target: object, name: str) -> bool:
        """`hasattr` for programs."""
        if type(name) is str and name in GUARDED_ATTRIBUTES:
            return hasattr(target, name)
        return hasattr(target, permitted(name))

    def set(self, target: object, name: str, value: object) -> None:
        """`setattr` for programs."""
        self._changeable(target, name)
        setattr(target, permitted(name), value)

    def delete(self, target: object, name: str) -> None:
        """`delattr` for programs."""
        self._changeable(target, name)
        delattr(target, permitted(name))

    def dictionary(self, target: object) -> Any:
        """`vars` and `__dict__` for programs: of the instances of their own classes. Raises AttributeError."""
        kind = type(target)
        if isinstance(target, (type, types.ModuleType)) or id(kind) in self._older or not _flags(kind) & _HEAP_TYPE:
            refuse("__dict__")
        return target.__dict__

    def attribute(self, target: Any, name: str) -> Any:
        """The value of a load of one of GUARDED_ATTRIBUTES."""
        if name == "__dict__":
            return self.dictionary(target)
        value = getattr(target, name)
        if not isinstance(value, _BUILTIN_METHODS):
            return value  # a program's own
        owner = getattr(value, "__self__", _MISSING)
        if name in _FORMATS:
            return self._formatting(value, owner, name)
        return self._changing(value, owner)

    def _formatting(self, value: Any, owner: object, name: str) -> Any:
        if owner is not _MISSING and not isinstance(owner, str):
            return value  # of another builtin type, which has no fields
        if owner is _MISSING and value is not getattr(str, name):
            return value

        def checked(*args: Any, **kwargs: Any) -> Any:
            check_fields(owner if isinstance(owner, str) else args[0] if args else "")
            return value(*args, **kwargs)

        return checked

    def _changing(self, value: Any, owner: object) -> Any:
        def checked(*args: Any) -> Any:
            target, name = (owner, args[0]) if owner is not _MISSING else args[:2]
            self._changeable(target, name)
            permitted(name)
            return value(*args)

        return checked

    def _changeable(self, target: object, name: object) -> None:
        older = isinstance(target, type) and id(target) in self._older
        if older or isinstance(target, types.ModuleType) or id(target) in self.shared:
            refuse(name)

    def attrgetter(self, name: str, *more: str) -> Callable[[Any], Any]:
        """`operator.attrgetter` for programs: a function, since from one of the library's its type could be had."""
        paths = [[permitted_or_guarded(part) for part in _text(path).split(".")] for path in (name, *more)]

        def get(target: object) -> object:
            found = [functools.reduce(self.get, path, target) for path in paths]
            return tuple(found) if more else found[0]

        return get

    def methodcaller(self, name: str, /, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """`operator.methodcaller` for programs."""
        permitted_or_guarded(name)
        return lambda target: self.get(target, name)(*args, **kwargs)

    # ------------------------------------------------------------------------------------------ the library's own use

    def library_get(self, names: Collection[str]) -> Callable[..., Any]:
        """`getattr` for a module of the library, whose source writes out `names`; others may come from programs."""

        def get(target: Any, name: str, *default: object) -> Any:
            _text(name)  # a subclass of str could be equal to any name
            if name == "__dict__" and not default and isinstance(target, types.ModuleType):
                refuse(name)  # it is to be written to
            if name == "__dict__" and not isinstance(target, type) and id(target) not in self.shared:
                # With a default it is to be read, as by `update_wrapper`, and may hold what the library has put there.
                if default and not self._is_open(target):
                    return default[0]
                return getattr(target, name, *default)
            if name in names:
                return getattr(target, name, *default)
            if isinstance(target, types.ModuleType):
                refuse(name)
            return self.get(target, name, *default)

        return get

    def _is_open(self, target: object) -> bool:
        """Whether all that the `__dict__` of `target` holds is a program's own."""
        if isinstance(target, types.ModuleType):
            return self._is_program(vars(target))
        return type(target) is types.FunctionType or id(type(target)) not in self._older

    def library_set(self, target: object, name: str, value: object) -> None:
        """`setattr` for the library: on what programs made, and the streams that `contextlib` redirects."""
        if target is not sys or name not in {"stdout", "stderr"}:
            self._changeable(target, name)
        if type(target) is types.FunctionType and name != "__module__":
            permitted(name)
        setattr(target, _text(name), value)

    def library_delete(self, target: object, name: str) -> None:
        """`delattr` for the library: on what programs made."""
        self._changeable(target, name)
        delattr(target, permitted(name))

    # ------------------------------------------------------------------------------------------ text that is evaluated

    def namespace(self, globals: dict[str, Any] | None) -> dict[str, Any]:
        """Globals for text that the library evaluates: those of a program or made by it, never those of a module."""
        if type(globals) is dict and "__builtins__" in globals:
            return globals if self._is_program(globals) else {"__builtins__": self.offered}
        return {**(globals or {}), "__builtins__": self.offered}

    def _is_program(self, globals: dict[str, Any]) -> bool:
        return globals.get("__builtins__") is self.offered

    def evaluate(self, code: types.CodeType | str, globals: Any = None, locals: Any = None) -> Any:
        """`eval` for the library."""
        checked = code if isinstance(code, types.CodeType) else checked_code(code, mode="eval")
        return eval(checked, self.namespace(globals), None if locals is None else self.namespace(locals))

    def execute(self, text: str, globals: Any = None, locals: Any = None) -> None:
        """`exec` for the library."""
        exec(checked_code(text, mode="exec"), self.namespace(globals), locals)


def _text(name: object) -> str:
    if type(name) is not str:
        raise TypeError("attribute name must be a string")
    return name


def permitted_or_guarded(name: object) -> str:
    """Return `name` if a program may use an attribute of this name, through a guard or not; raise Refused otherwise."""
    return name if type(name) is str and name in GUARDED_ATTRIBUTES else permitted(name)


def check_fields(text: str) -> None:
    """Raise AttributeError if a format text names an attribute that a program may not touch."""
    for _, field, spec, _ in _string.formatter_parser(text):
        if field is not None:
            for is_attribute, name in _string.formatter_field_name_split(field)[1]:
                if is_attribute:
                    permitted(name)
        if spec:
            check_fields(spec)


def checked_code(text: str, filename: str = "", mode: str = "exec", *_: object, **__: object) -> types.CodeType:
    """`compile` for the library. Raises AttributeError for text that the gate refuses, or what `compile` does."""
    # Of exact type: a subclass of str could tell the gate that it is of ASCII.
    found = compile_checked(str.__str__(text), mode, pruned=False)
    if isinstance(found, tuple):
        raise Refused(f"{found[0]}: {found[1]}")
    return found


# ------------------------------------------------------------------------------------------------------ class patterns

# Classes whose pattern takes one position for the whole value.
_SELF_MATCHING = (bool, bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple)


class _Matching(type):
    """The type of stand-ins for classes in patterns."""

    target: type

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.target)


class Classes:
    """The classes of one `match`, each looked up when its pattern is tried. `c0` is the first one's stand-in."""

    def __init__(self, *lookups: Callable[[], Any]) -> None:
        self._lookups = lookups

    def __getattr__(self, name: str) -> Any:
        return stand_in(self._lookups[int(name[1:])]())


def stand_in(target: Any) -> Any:
    """Make a class for a pattern in place of `target`, with the same instances and with checked `__match_args__`."""
    if not isinstance(target, type) or any(target is kind for kind in _SELF_MATCHING):
        return target
    names = getattr(target, "__match_args__", None)
    if names is None:
        bases = tuple(kind for kind in _SELF_MATCHING if kind is not bool and kind in type.mro(target))
        return _Matching("pattern", bases[:1], {"target": target})
    if type(names) is not tuple:
        raise TypeError("__match_args__ must be a tuple")
    for name in map(permitted, names):
        if name in GUARDED_ATTRIBUTES:
            refuse(name)
    return _Matching("pattern", (), {"target": target, "__match_args__": names})
