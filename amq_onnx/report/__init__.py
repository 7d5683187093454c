"""One HTML file that shows what a quantization made."""
