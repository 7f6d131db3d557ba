"""The ONNX to ONNX steps, one module a step, and the calibration arithmetic that needs no ONNX."""
