"""`model.py` against a stand-in of the python backend's interface: for machines without the server.

`test_triton_server.py` has the real one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from triton_stand_in import OfNumpy1, Tensor, interface, opened

import workbench as wb


@pytest.fixture(params=[Tensor, OfNumpy1])
def served(request, study: wb.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = study.deploy("fp32", tmp_path / "repository", backend="python")
    model = opened(tmp_path / "repository" / made.name, interface(request.param), monkeypatch)
    yield model, request.param
    model.finalize()


def test_several_requests_are_answered_in_their_order(served, study: wb.Study) -> None:
    model, tensor = served
    arrays = [np.random.default_rng(size).normal(size=(size, 8)).astype(np.float32) for size in (1, 3, 2)]
    responses = model.execute([{"x": tensor("x", array)} for array in arrays])
    with wb.open_runner(study["fp32"].engine) as runner:
        whole = runner.infer({"x": np.concatenate(arrays)})
    for response, start, size in zip(responses, (0, 1, 4), (1, 3, 2), strict=True):
        assert response.error is None
        assert np.array_equal(response.outputs["logits"], whole["logits"][start : start + size])
        assert np.array_equal(response.outputs["best"], whole["best"][start : start + size, None])


def test_a_request_that_fails_gets_its_error_and_the_others_their_answers(served) -> None:
    model, tensor = served
    good, bad = np.ones((1, 8), np.float32), np.ones((1, 7), np.float32)
    first, second = model.execute([{"x": tensor("x", good)}, {"x": tensor("x", bad)}])
    assert first.error is None and first.outputs["logits"].shape == (1, 3)
    assert "Got: 7 Expected: 8" in second.error.message
