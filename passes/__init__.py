"""Rewrites of ONNX graphs, one a file: onnx, onnx-graphsurgeon and numpy only, no I/O, no torch."""
