"""Calibration as numbers: streaming histograms, clip thresholds (max, percentile, KL, MSE) and the table that holds them.

Knows nothing of ONNX and of engines; `workbench.transformation` observes a model and fills the table.
"""
