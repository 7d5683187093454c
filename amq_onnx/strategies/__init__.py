"""Rival ways to choose widths, through the same quantizer and the same files, so that only the widths differ."""
