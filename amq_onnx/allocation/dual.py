"""The Lagrangian dual with two multipliers, by the method of centres of gravity.

A. Yu. Levin, Soviet Mathematics Doklady 6 (1965); D. J. Newman, J. ACM 12 (1965): evaluate the concave dual
at the centroid of the polygon that must contain its maximum, cut the polygon with the supergradient, repeat;
each cut removes at least 1/e of the area. In two dimensions the polygon is a short list of corners. Any
multipliers give a valid bound, so stopping early costs speed only, never exactness.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from amq_onnx.allocation.problem import Floats, Ints

_CUTS = 160
_Point = tuple[float, float]


def multipliers(
    cost: Floats, weights: tuple[Ints, Ints], budgets: tuple[int, int], guess: tuple[float, float]
) -> tuple[float, float]:
    """Multipliers (first, second) that nearly maximise the dual.

    Args:
        cost: shape [sites, options]; inf where there is no option.
        weights: the two costs that are bounded, shape [sites, options].
        budgets: their bounds.
        guess: the order of magnitude of each multiplier, > 0.
    """
    one, two = weights[0].astype(np.float64), weights[1].astype(np.float64)
    rows = np.arange(cost.shape[0])
    best = (0.0, 0.0, -np.inf)

    def look(x: float, y: float) -> tuple[float, float]:
        nonlocal best
        priced = cost + (x * one + y * two)
        pick = priced.argmin(axis=1)
        value = float(priced[rows, pick].sum()) - x * budgets[0] - y * budgets[1]
        if value > best[2]:
            best = (x, y, value)
        return float(one[rows, pick].sum()) - budgets[0], float(two[rows, pick].sum()) - budgets[1]

    look(0.0, 0.0)
    width, height = 4 * guess[0], 4 * guess[1]
    for _ in range(12):
        box = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
        _centres(box, look)
        wide, high = best[0] > 0.9 * width, best[1] > 0.9 * height
        if not (wide or high):
            break
        width *= 32 if wide else 1
        height *= 32 if high else 1
    return best[:2]


def _centres(polygon: list[_Point], look: Callable[[float, float], _Point]) -> None:
    whole = _centroid(polygon)[1]
    for _ in range(_CUTS):
        (x, y), area = _centroid(polygon)
        if not area > whole * 1e-26:
            return
        gx, gy = look(x, y)
        if gx == 0 and gy == 0:
            return
        polygon = _cut(polygon, x, y, gx, gy)
        if len(polygon) < 3:
            return


def _centroid(polygon: list[_Point]) -> tuple[_Point, float]:
    x0, y0 = polygon[0]
    area = cx = cy = 0.0
    for (ax, ay), (bx, by) in pairwise(polygon[1:]):
        part = (ax - x0) * (by - y0) - (bx - x0) * (ay - y0)
        area += part
        cx += part * (ax - x0 + bx - x0)
        cy += part * (ay - y0 + by - y0)
    if area <= 0:
        return (x0, y0), 0.0
    return (x0 + cx / (3 * area), y0 + cy / (3 * area)), area / 2


def _cut(polygon: list[_Point], x: float, y: float, gx: float, gy: float) -> list[_Point]:
    """The part of the polygon where the supergradient at (x, y) promises no less."""
    result: list[_Point] = []
    signs = [gx * (px - x) + gy * (py - y) for px, py in polygon]
    for k, (px, py) in enumerate(polygon):
        here, there = signs[k], signs[(k + 1) % len(polygon)]
        qx, qy = polygon[(k + 1) % len(polygon)]
        if here >= 0:
            result.append((px, py))
        if (here > 0 > there) or (here < 0 < there):
            part = here / (here - there)
            result.append((px + part * (qx - px), py + part * (qy - py)))
    return result
