"""Numbers of quantization: encodings, affine rounding, ranges. Arrays only; knows no graph and no torch."""
