"""The network in other forms: ahead-of-time compiled packages and ONNX."""
