"""A stand-in for the tensorrt module, made from the API surface of a real release.

Names, class members and enum members that the release lacks raise AttributeError, and calls are checked against the
signatures of its bindings, types included (a Path where the bindings want text is a TypeError, as in life). What the
classes do is in `world`. Interfaces whose base `__init__` was not called are refused: the real ones crash.
"""

from __future__ import annotations

import functools
import json
import re
import types
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[3] / "data"
VERSIONS = ("8.6.0", "10.16.1", "11.4.0")  # TensorRT for RTX has a surface of its own: "rtx-1.7.1"


class Member:
    """An enum member as pybind11 makes it: a name, int(), equal to itself alone."""

    def __init__(self, enum: str, name: str, value: int) -> None:
        self.name, self.enum, self._value = name, enum, value

    def __int__(self) -> int:
        return self._value

    def __repr__(self) -> str:
        return f"<{self.enum}.{self.name}: {self._value}>"


class OddMember(Member):
    """A member of the parser's ErrorCode in 8.6.0 on a GPU: its `name` is a function that pybind11 did not bind."""

    def __init__(self, enum: str, name: str, value: int) -> None:
        super().__init__(enum, name, value)
        self._words, self.name = f"{enum}.{name}", len  # type: ignore[assignment]

    def __repr__(self) -> str:
        return self._words


class Module(types.ModuleType):
    """The module; `calls` is the log of all calls, `world` what tests turn."""

    calls: list[tuple[str, tuple[Any, ...]]]
    world: Any

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """Return the arguments of each call of `Class.method`."""
        return [arguments for called, arguments in self.calls if called == name]


@functools.cache
def _surface(version: str) -> dict[str, Any]:
    return json.loads((DATA / f"tensorrt_api_{version}.json").read_text())


def make(version: str, world: Any) -> Module:
    """Return the stand-in for a release."""
    surface = _surface(version)
    module = Module("tensorrt")
    module.calls, module.world, module.__version__ = [], world, surface["version"]
    world.module = module
    for name, spec in surface["classes"].items():
        if spec["kind"] == "enum":
            odd = name == "ErrorCode" and version.startswith("8.")
            setattr(module, name, _enum(name, spec["values"], OddMember if odd else Member))
    for name, spec in surface["classes"].items():
        if spec["kind"] == "class":
            _class(module, name, surface["classes"])
    for name in surface["functions"]:
        setattr(module, name, _function(module, name))
    return module


def _enum(name: str, values: dict[str, int], kind: type[Member] = Member) -> type:
    shared: dict[int, Member] = {}
    members = {key: shared.setdefault(value, kind(name, key, value)) for key, value in values.items()}
    return type(name, (), {**members, "__members__": members})


def _function(module: Module, name: str) -> Any:
    def function(*arguments: Any) -> Any:
        module.calls.append((name, arguments))
        return module.world.behaviour(name)(None, *arguments)

    return function


class Base:
    """What all stand-in classes are: a state of their own, attributes only where the release has them."""

    _settable: frozenset[str] = frozenset()
    _native = True

    def __setattr__(self, name: str, value: Any) -> None:
        if type(self).__dict__.get("_native", False) and name not in self._settable and name != "state":
            raise AttributeError(f"{type(self).__name__!r} object has no settable attribute {name!r}")
        object.__setattr__(self, name, value)


def _class(module: Module, name: str, classes: dict[str, Any]) -> type:
    if hasattr(module, name):
        return getattr(module, name)
    spec = classes[name]
    bases = tuple(_class(module, base, classes) for base in spec["bases"] if base in classes) or (Base,)
    namespace: dict[str, Any] = {"__init__": _init(module, name, spec), "_native": True}
    for enum_name, members in spec.get("nested_enums", {}).items():
        namespace[enum_name] = _enum(enum_name, {member: index for index, member in enumerate(members)})
    for member, kind in spec["members"].items():
        if kind == "method":
            namespace[member] = _method(module, name, member, spec["signatures"].get(member, []))
        elif kind.startswith("property"):
            namespace[member] = _property(module, name, member, kind == "property_rw")
        elif kind == "value" and "Severity" in namespace:
            namespace[member] = getattr(namespace["Severity"], member)
    inherited = frozenset().union(*(base._settable for base in bases))
    namespace["_settable"] = inherited | {item for item, kind in spec["members"].items() if kind == "property_rw"}
    made = type(name, bases, namespace)
    setattr(module, name, made)
    return made


def _init(module: Module, name: str, spec: dict[str, Any]) -> Any:
    def __init__(self: Any, *arguments: Any, **named: Any) -> None:  # noqa: N807
        signatures = spec["signatures"].get("__init__", [])
        if not signatures and not module.world.inside:
            raise TypeError(f"tensorrt.{name}: No constructor defined!")
        if signatures:
            _check(module, f"{name}.__init__", signatures, (self, *arguments), named)
        self.state = types.SimpleNamespace()
        module.calls.append((name, arguments))
        start = module.world.behaviour(f"{name}.__init__", None)
        if start is not None:
            start(self, *arguments)

    return __init__


def _method(module: Module, name: str, member: str, signatures: list[str]) -> Any:
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        if signatures:
            _check(module, f"{name}.{member}", signatures, (self, *arguments), named)
        module.calls.append((f"{name}.{member}", (*arguments, *named.values())))
        action = module.world.behaviour(f"{name}.{member}", None)
        if action is not None:
            return action(self, *arguments, **named)
        result = signatures[-1].rpartition("->")[2].strip() if signatures else ""
        if result == "None":
            return None
        raise NotImplementedError(f"the stand-in has no behaviour for {name}.{member}")

    return method


def _property(module: Module, name: str, member: str, settable: bool) -> property:
    def get(self: Any) -> Any:
        action = module.world.behaviour(f"{name}.{member}", None)
        return action(self) if action is not None else getattr(self.state, member, None)

    def put(self: Any, value: Any) -> None:
        module.calls.append((f"{name}.{member}=", (value,)))
        setattr(self.state, member, value)

    return property(get, put if settable else None)


def _check(module: Module, what: str, signatures: list[str], given: tuple[Any, ...], named: dict[str, Any]) -> None:
    exact = [signature for signature in signatures if "*args" not in signature]
    complaints = [_complaint(module, signature, given, named) for signature in exact]
    if None not in complaints:
        raise TypeError(f"{what}(): incompatible function arguments: {'; '.join(str(item) for item in complaints)}")


@functools.cache
def _parameters(signature: str) -> list[tuple[str, str, bool]]:
    """Return (name, type, required) of each parameter."""
    inner = signature[signature.index("(") + 1 : signature.rindex(")")]
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(inner + ","):
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append(inner[start:index].strip())
            start = index + 1
    found = []
    for part in filter(None, parts):
        head, equals, _ = part.partition(" = ")
        name, _, kind = head.partition(": ")
        found.append((name, kind, not equals))
    return found


def _complaint(module: Module, signature: str, given: tuple[Any, ...], named: dict[str, Any]) -> str | None:
    parameters = _parameters(signature)
    if len(given) + len(named) > len(parameters):
        return f"{len(given) + len(named) - 1} arguments for {signature}"
    names = [name for name, _, _ in parameters]
    bound = dict(zip(names, given, strict=False))
    if set(named) - set(names) or set(named) & set(bound):
        return f"unknown or doubled argument names {sorted(named)} for {signature}"
    bound.update(named)
    for name, kind, required in parameters:
        if name not in bound:
            if required:
                return f"{name} is missing in {signature}"
        elif not (bound[name] is None and not required) and not _fits(module, name, kind, bound[name]):
            return f"{name} is {type(bound[name]).__name__} in {signature}"
    return None


def _fits(module: Module, name: str, kind: str, value: Any) -> bool:
    if kind == "str":
        return isinstance(value, str)
    if kind in ("int", "SupportsInt"):
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if kind == "bool":
        return isinstance(value, bool)
    if kind in ("float", "SupportsFloat"):
        return isinstance(value, (int, float))
    if kind in ("buffer", "Buffer"):
        return hasattr(value, "state") or isinstance(value, (bytes, bytearray, memoryview, np.ndarray))
    if kind == "Dims":
        return isinstance(value, (tuple, list))
    if re.match(r"(List|list|Sequence)\b", kind):
        return isinstance(value, (list, tuple))
    if kind == "numpy.ndarray":
        return isinstance(value, np.ndarray)
    wanted = getattr(module, kind.rpartition(".")[2], None)
    if wanted is None:
        return True
    if hasattr(wanted, "__members__"):
        return isinstance(value, Member) and value.enum == kind
    return isinstance(value, wanted) and (name == "self" or hasattr(value, "state"))
