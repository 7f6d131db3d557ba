"""Many quantized graphs of one model, judged here: which calibrator for which tensor, which layer costs what."""
