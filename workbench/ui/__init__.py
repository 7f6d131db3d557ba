"""The workbench as an app of widgets: jobs, state and commands, views, and what wires them."""

from __future__ import annotations

from workbench.ui.app import Workbench, explore

__all__ = ["Workbench", "explore"]
