"""What all tests share."""

from __future__ import annotations

import os
import tempfile

# Tests that ask ONNX Runtime by themselves report nothing to its makers either.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Tests that measure wait for each other within a session, not for whoever else measures on this machine: neither for the other
# half of a session that runs in two processes, or what a test says of waiting would depend on what runs beside it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("WORKBENCH_TURN_FILE", None)
os.environ.setdefault("WORKBENCH_TURN_FILE", os.path.join(tempfile.mkdtemp(prefix="workbench-tests-"), "turn"))  # noqa: PTH118
