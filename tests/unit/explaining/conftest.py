"""One store for all explanations, so that this machine's ceilings are measured once; and a net with its explanation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from planted import Pairs, quantized, save

from workbench.explaining.explanation import Explanation
from workbench.explaining.files import explain_files
from workbench.machine.store import Store

Explain = Callable[..., Explanation]


@pytest.fixture(scope="session")
def explained_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("explained"))


@pytest.fixture
def explain(explained_store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> Explain:
    # Ceilings that were measured while something else ran are kept in the store: whoever is asked again measures them anew.
    again = getattr(request.node, "execution_count", 1) > 1
    store = Store(tmp_path / "anew") if again else explained_store

    def of(parent: onnx.ModelProto, variant: onnx.ModelProto | Pairs, x: np.ndarray, batch: int = 4) -> Explanation:
        if isinstance(variant, Pairs):
            variant = quantized(parent, {"x": x}, variant)
        paths = save(tmp_path, "before", parent), save(tmp_path, "after", variant)
        return explain_files(*paths, x, backend="onnxruntime-cpu", batch=batch, store=store)

    return of
