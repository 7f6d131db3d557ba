"""The world of a stand-in: what tests turn, and the behaviour of every class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_behaviour import EngineBehaviour
from network_behaviour import NetworkBehaviour


class World(NetworkBehaviour, EngineBehaviour):
    """What tests turn, and the behaviour of every class.

    Attributes:
        parser_errors: what the parser complains about: (code, node index, description); any makes it refuse.
        build_lines: (severity, message) that the builder says; build_fails makes it return nothing.
        unsupported: operator types without an importer.
        plugins: names in the registry; libraries: file name -> names that a library gives when TensorRT asks it;
            creators: those written in Python.
        data_dependent: outputs whose shape is known only after the run.
        cancel_after: the progress monitor's steps; each answer is kept in `monitor_answers`.
    """

    def __init__(self, cuda: Any) -> None:
        self.cuda, self.module, self.inside = cuda, None, False
        self.parser_errors: list[tuple[str, int, str]] = []
        self.build_lines: list[tuple[str, str]] = []
        self.build_fails = self.run_fails = self.refuses_plan = self.builder_fails = False
        self.context_fails = ""  # what TensorRT says when it makes no context
        self.unsupported: set[str] = set()
        self.plugins = {"Gelu_TRT"}
        self.libraries: dict[str, set[str]] = {}
        self.creators: list[Any] = []
        self.refused: set[str] = set()  # methods of the config that answer False
        self.data_dependent: set[str] = set()
        self.steps = 0
        self.monitor_answers: list[bool] = []
        self.cache_fits = True
        self.validity = ("VALID", 0)  # what TensorRT for RTX says of a plan, and the bits of its reasons
        self.missing_weights: list[str] = []
        self.layer_times = {"/fc/MatMul + /relu/Relu": 0.5}

    def behaviour(self, name: str, *fallback: Any) -> Callable[..., Any]:
        return getattr(self, "do_" + name.replace(".", "_"), *fallback)

    def new(self, kind: str, **state: Any) -> Any:
        """Make an object of a class that has no public constructor."""
        self.inside = True
        try:
            made = getattr(self.module, kind)()
        finally:
            self.inside = False
        made.state.__dict__.update(state)
        return made

    def member(self, enum: str, name: str) -> Any:
        return getattr(getattr(self.module, enum), name)

    def flags(self, config: Any) -> list[str]:
        return sorted(flag.name for flag in config.state.flags)
