"""Rewrites of ONNX graphs: onnx, onnx-graphsurgeon and numpy only."""
