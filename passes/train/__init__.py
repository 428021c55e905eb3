"""The `train` pass: one run trains every width of a quantized graph."""
