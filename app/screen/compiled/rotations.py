"""Jacobi rotations of core_svd.py, compiled by numba: the same operations, one by one, as the numpy code there."""

from typing import Any

import numpy as np

from app.screen.compiled.numba_support import compiled


@compiled
def sweep(rows: Any, schedule: Any, dead: float, orthogonal: float) -> bool:
    """Rotate every pair of rows (n, m) that is not orthogonal, in the schedule's order; return whether any was rotated.

    dead: squared length up to which a row is not rotated.
    """
    turned = False
    for k in range(schedule.shape[0]):
        for p in range(schedule.shape[1]):
            i, j = schedule[k, p, 0], schedule[k, p, 1]
            if i < 0:
                continue
            a, b, g = 0.0, 0.0, 0.0
            for n in range(rows.shape[1]):
                x, y = rows[i, n], rows[j, n]
                a += x * x
                b += y * y
                g += x * y
            if not (a > dead and b > dead and abs(g) > orthogonal * np.sqrt(a) * np.sqrt(b)):
                continue
            turned = True
            zeta = (b - a) / (2.0 * g)
            t = (1.0 if zeta >= 0.0 else -1.0) / (abs(zeta) + np.sqrt(1.0 + zeta * zeta))
            c = 1.0 / np.sqrt(1.0 + t * t)
            s = c * t
            for n in range(rows.shape[1]):
                x, y = rows[i, n], rows[j, n]
                rows[i, n] = c * x - s * y
                rows[j, n] = s * x + c * y
    return turned
