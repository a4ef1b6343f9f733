"""The phi functions of exponential integrators."""

import math


def phi(k: int, z: float) -> float:
    """phi_0(z) = e^z, phi_{k+1}(z) = (phi_k(z) − 1/k!)/z; so phi_k(0) = 1/k!.

    Args:
        k: which function, at least 0.
        z: where.

    Returns:
        The value to float64 accuracy: a series near 0, where the recursion would cancel.

    Example:
        >>> round(phi(1, 1.0), 6), phi(2, 0.0)
        (1.718282, 0.5)

    Reference: Hochbruck and Ostermann 2010, equation 2.11.
    """
    if k == 0:
        return math.exp(z)
    if abs(z) < 1.0:
        total = term = 1.0 / math.factorial(k)
        for j in range(1, 19):  # 1/19! is below the rounding error
            term *= z / (k + j)
            total += term
        return total
    value = math.expm1(z) / z
    for j in range(1, k):
        value = (value - 1.0 / math.factorial(j)) / z
    return value
