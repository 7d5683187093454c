"""onnxruntime: sessions on a named provider, verification, latency."""
