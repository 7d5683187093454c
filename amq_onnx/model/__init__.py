"""The ONNX file: reading, writing, what can be quantized in its graph, and the data it is fed."""
