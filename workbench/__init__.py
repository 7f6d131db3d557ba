"""A Jupyter workbench that shows what each optimization costs in accuracy and gains in latency.

The verbs: `load transform build open_runner measure check compare run report convert Workbench`. Importing
this package imports none of torch, tensorrt, onnxruntime and ipywidgets; each is imported by what needs it.
"""

from __future__ import annotations

__version__ = "0.1.0"
