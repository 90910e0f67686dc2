"""The standard library's modules as programs get them: in some, `getattr`, `eval` and the like are guards.

`functools.update_wrapper` reads the attributes that its caller names, `typing` evaluates text, `dataclasses` puts names
into a text that it executes, and so on. Programs get copies of such modules. A copy runs the same source with other
builtins (`Guards.library_get`), so that all of these are within the policy, and everything else in the module stays the
same. The process's own modules are not changed.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import itertools
import sys
import types
from collections import ChainMap
from collections.abc import Callable
from typing import Any

from executor.policy.guards import Guards, checked_code, permitted

_NAMES: dict[str, frozenset[str]] = {
    name: frozenset(names.split())
    for name, names in {
        "copy": "__reduce_ex__ __reduce__ CodeType",
        "functools": "__isabstractmethod__ __module__",
        "typing": "__parameters__ __typing_unpacked_tuple_args__ __typing_is_unpacked_typevartuple__ __unpacked__"
        " __globals__ __typing_prepare_subst__ __typing_subst__ __no_type_check__ __module__ __func__",
        "dataclasses": "__dataclass_fields__ __dataclass_params__",
        "string": "",
        "pprint": "",
        "contextlib": "stdout stderr",
        "queue": "",
    }.items()
}
"""The modules, and the special attributes that their source reads by `getattr`, besides those that programs may
name."""


def guarded_modules(guards: Guards) -> dict[str, types.ModuleType]:
    """The copies, by their names."""
    modules: dict[str, types.ModuleType] = {}
    # The copies find each other here.
    system = types.ModuleType("sys")
    vars(system).update(vars(sys), modules=ChainMap(modules, sys.modules))
    for name in _NAMES:
        modules[name] = _copy(name, guards, modules, system)
    _mend_cached_property(modules["functools"])
    _mend_partialmethod(modules["functools"])
    _mend_namespaces(modules["pprint"])
    _mend_copies_of_methods(modules["copy"], guards)
    modules["copy"].__dict__["_reconstruct"] = _reconstructing(guards, modules["copy"].deepcopy)
    _mend_text_annotations(modules["dataclasses"])
    # A program has no thread that could end a queue's wait, so this clock has passed every deadline at its second look.
    ages = itertools.count(step=1 << 40)
    vars(modules["queue"])["time"] = ages.__next__
    return modules


def _copy(
    name: str, guards: Guards, modules: dict[str, types.ModuleType], system: types.ModuleType
) -> types.ModuleType:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)

    def import_(wanted: str, *rest: Any) -> Any:
        if wanted == "sys" and name != "contextlib":
            return system
        return modules[wanted] if wanted in modules else builtins.__import__(wanted, *rest)

    module.__dict__["__builtins__"] = {
        **vars(builtins),
        "__import__": import_,
        "id": guards.identity,  # a memo of `deepcopy` is shared with programs
        "getattr": guards.library_get(_NAMES[name]),
        "setattr": guards.library_set,
        "delattr": guards.library_delete,
        "compile": checked_code,
        "eval": guards.evaluate,
        "exec": guards.execute,
    }
    spec.loader.exec_module(module)
    return module


def _mend_cached_property(functools: types.ModuleType) -> None:
    """It writes into its instance's `__dict__`, whosever that is."""
    kind = functools.cached_property

    def get(self: Any, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        name = permitted(self.attrname)
        if isinstance(instance, (type, types.ModuleType)):
            raise TypeError("a cached property is one of an instance")
        cache = instance.__dict__
        if name not in cache:
            cache[name] = self.func(instance)
        return cache[name]

    kind.__get__ = get


def _mend_partialmethod(functools: types.ModuleType) -> None:
    """It notes what a method is bound to, of a builtin one a module, among the attributes of its partial."""
    kind = functools.partialmethod

    def get(self: Any, instance: Any, owner: Any = None) -> Any:
        bind = getattr(type(self.func), "__get__", None)
        if bind is None or isinstance(self.func, functools.partial):
            return self._make_unbound_method().__get__(instance, owner)
        bound = bind(self.func, instance, owner)
        if bound is self.func:
            return self._make_unbound_method().__get__(instance, owner)
        return functools.partial(bound, *self.args, **self.keywords)

    kind.__get__ = get


def _mend_namespaces(pprint: types.ModuleType) -> None:
    """It formats the `__dict__` of what it is given, by a method that a subclass may define. Programs have no
    namespace objects."""
    printer = pprint.PrettyPrinter
    del printer._pprint_simplenamespace
    del printer._dispatch[types.SimpleNamespace.__repr__]


def _mend_copies_of_methods(copy: types.ModuleType, guards: Guards) -> None:
    """A deep copy of a method copies what it is bound to, and keeps the copy where the caller can find it."""

    def deepcopy(method: Any, memo: Any) -> Any:
        bound = method.__self__
        return method if guards.is_older(type(bound)) else type(method)(method.__func__, copy.deepcopy(bound, memo))

    vars(copy)["_deepcopy_dispatch"][types.MethodType] = deepcopy


def _mend_text_annotations(dataclasses: types.ModuleType) -> None:
    """It looks for the module that an annotation in quotes names, and finds a facade."""

    def is_type(annotation: str, cls: type, module: types.ModuleType, kind: Any, predicate: Any) -> bool:
        found = vars(dataclasses)["_MODULE_IDENTIFIER_RE"].match(annotation)
        name = {dataclasses.InitVar: "InitVar", dataclasses.KW_ONLY: "KW_ONLY"}.get(kind, "ClassVar")
        return bool(found) and found.group(2) == name

    vars(dataclasses)["_is_type"] = is_type


def _reconstructing(guards: Guards, deepcopy: Callable[..., Any]) -> Callable[..., Any]:
    """`copy._reconstruct`, for a state that names attributes which a program may touch, and objects which it may
    change."""

    def check(state: object) -> None:
        for part in state if type(state) is tuple and len(state) == 2 else (state,):
            for name in dict.keys(part) if isinstance(part, dict) else ():
                permitted(name)

    def reconstruct(
        x: Any,
        memo: Any,
        func: Any,
        args: Any,
        state: Any = None,
        listiter: Any = None,
        dictiter: Any = None,
        *,
        deepcopy: Any = deepcopy,
    ) -> Any:
        def deep(value: Any) -> Any:
            return value if memo is None else deepcopy(value, memo)

        y = func(*[deep(arg) for arg in args])
        if memo is not None:
            memo[guards.identity(x)] = y
        if state is not None:
            check(state)
            state = deep(state)
            check(state)
            if hasattr(y, "__setstate__"):
                y.__setstate__(state)
            else:
                state, slots = state if type(state) is tuple and len(state) == 2 else (state, None)
                if isinstance(y, (type, types.ModuleType)) or id(y) in guards.shared:
                    raise TypeError("can't be copied")
                # As a dict of exact type, whose names are all that will be written.
                state = dict(state or {})
                check(state)
                if state:
                    y.__dict__.update(state)
                for name, value in dict(slots or {}).items():
                    guards.set(y, name, value)
        for item in listiter or ():
            y.append(deep(item))
        for key, value in dictiter or ():
            y[deep(key)] = deep(value)
        return y

    return reconstruct


# ------------------------------------------------------------------------------------------------------ stand-ins


class Stream:
    """Stands for a program's standard input, output and error: nothing comes in, and output is lost."""

    __slots__ = ()

    def write(self, text: str) -> int:
        """Discard `text`. Returns its length."""
        return len(text)

    def flush(self) -> None:
        """Nothing."""

    close = flush

    def read(self, size: int = -1) -> str:
        """The end of the stream."""
        return ""

    readline = read

    def readlines(self) -> list[str]:
        """No lines."""
        return []

    def __iter__(self) -> Any:
        return iter(())


def no_input(prompt: object = "") -> str:
    """`input` where there is none. Raises EOFError, as with standard input at its end."""
    raise EOFError("EOF when reading a line")
