"""Seeds of random probes."""

from __future__ import annotations


def mixed_seed(seed: int, probe: int, unit: int) -> int:
    """One seed from three numbers (splitmix64's constants keep neighbours apart)."""
    state = seed
    for number in (probe, unit):
        state = (state + 0x9E3779B97F4A7C15 * (number + 1)) & (2**64 - 1)
        state ^= state >> 31
        state = (state * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return state >> 1
