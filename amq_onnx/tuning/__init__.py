"""Makes a quantized graph's numbers fit the float graph's: learned rounding and fine-tuning, on the executor."""
