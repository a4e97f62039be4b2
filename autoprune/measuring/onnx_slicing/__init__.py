"""A plan's ONNX graph, cut out of the dense one."""
