"""The network for other programs: ONNX."""
