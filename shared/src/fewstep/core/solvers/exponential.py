"""The phi functions of exponential integrators."""

import math
from collections.abc import Sequence


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


def lagrange_weights(nodes: Sequence[float], z: float) -> list[float]:
    """w_j = int_0^1 e^{(1 − u)·z}·L_j(u) du, L_j the Lagrange polynomials of the nodes.

    They solve sum_j w_j·r_j^k = k!·phi_{k+1}(z) for k = 0 … q − 1, and integrate polynomials
    of degree below q exactly. A step of length h in lam = log(a/sigma) is

        data form   z_s = sigma_s/sigma_t·z_t + a_s·h·sum_j w_j·x0_j,      z = −h,
        noise form  z_s = a_s/a_t·z_t − sigma_s·h·sum_j w_j·eps_j,         z = +h.

    Args:
        nodes: r_j = (lam_j − lam_t)/h, distinct: 0 the newest, older ones negative, 1 the end of the step.
        z: exponent over the whole step.

    Returns:
        The weights, in the order of the nodes.

    Example:
        >>> [round(w, 6) for w in lagrange_weights([0.0, -1.0], 0.0)]
        [1.5, -0.5]

    Reference: Hochbruck and Ostermann 2010, section 2.5; Zhao et al. 2023 (UniPC), appendix A.
    """
    count = len(nodes)
    weights = [math.factorial(k) * phi(k + 1, z) for k in range(count)]
    # Björck and Pereyra's elimination of the Vandermonde system: for few nodes faster than a library call
    for k in range(count - 1):
        for j in range(count - 1, k, -1):
            weights[j] -= nodes[k] * weights[j - 1]
    for k in range(count - 2, -1, -1):
        for j in range(k + 1, count):
            weights[j] /= nodes[j] - nodes[j - k - 1]
        for j in range(k, count - 1):
            weights[j] -= weights[j + 1]
    return weights
