"""Widths that are given to single sites, which the search then leaves as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from amq_onnx.errors import UsageError
from amq_onnx.model.sites import Sites
from amq_onnx.rewriting import Prepared

Pin = tuple[str, int]
"""A regular expression of sites' names, and their width in bits."""


def pinned_widths(prepared: Prepared, pins: Iterable[Pin], activation_bits: Sequence[int] | None) -> dict[str, int]:
    """Widths by the names of the sites that pins match (`re.search`); of several pins the last counts.

    Raises UsageError for a pattern that is no regular expression or matches no site, for a width that the target can't
    write, and for a pinned activation where `activation_bits` is None, so that activations are float.
    """
    target, activations = prepared.target, {site.name for site in prepared.sites.activations}
    found: dict[str, int] = {}
    for pattern, bits in pins:
        for name in prepared.sites.matching("--pin", pattern):
            if name in activations and activation_bits is None:
                raise UsageError(
                    f"--pin '{pattern}={bits}' gives '{name}' a width, and --activation-bits float gives activations "
                    "none: leave one of the two out"
                )
            written = target.activation_widths if name in activations else target.weight_widths
            if bits not in written:
                listed = ", ".join(map(str, written))
                raise UsageError(f"--pin '{pattern}={bits}': '{name}' can only have {listed} bits")
            found[name] = bits
    return found


def widths_to_measure(
    sites: Sites, pinned: Mapping[str, int], bits: Sequence[int], activation_bits: Sequence[int] | None
) -> tuple[list[int], list[int] | None]:
    """The widths of weights and of activations that a table needs for a search with `pinned` sites."""
    weights = {*bits, *(pinned[site.name] for site in sites.weights if site.name in pinned)}
    if activation_bits is None:
        return sorted(weights), None
    of_activations = {*activation_bits, *(pinned[site.name] for site in sites.activations if site.name in pinned)}
    return sorted(weights), sorted(of_activations)
