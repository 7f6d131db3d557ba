"""Studies: everything the workbench finds out about one model under N recipes, on disk and resumable.

`run` chains load -> transform -> build -> check -> measure for each recipe. It is what the notebooks, the widgets
and the command line call.
"""

from __future__ import annotations

from workbench.study.running import run
from workbench.study.study import Study

__all__ = ["Study", "run"]
