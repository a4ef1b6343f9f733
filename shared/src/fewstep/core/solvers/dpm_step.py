"""One step of the DPM-Solver family: weights of its data and noise forms, for the ODE and for the SDE."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from fewstep.core.builder import Call, PlanBuilder, Vector
from fewstep.core.solvers.base import Level, Node
from fewstep.core.solvers.exponential import phi
from fewstep.core.solvers.first_order import first_order_step

FORMS = ("data", "noise")
CORRECTIONS = ("midpoint", "taylor")


def moments(count: int, z: Any, rule: str, phi: Callable[[int, Any], Any] = phi) -> list[Any]:
    """What the weights w_j of values at r_j must give: sum_j w_j·r_j^k for k = 0 … count − 1.

    Exact is k!·phi_{k+1}(z), the integral of e^{(1 − u)·z}·u^k over the step. Two published rules differ:

        "midpoint"   phi_1/2 for k = 1, in steps of two values,
        "official"   phi_3 instead of 2·phi_3 for k = 2, in multistep steps of three values,

    the first without and the second with loss of an order.

    Args:
        count: number of values, 1 to 3.
        z: −(1 + eta)·h in data form, +h in noise form; a float or a tensor.
        rule: "taylor" is exact for any count.
        phi: the phi functions for what z is.
    """
    found = [math.factorial(k) * phi(k + 1, z) for k in range(count)]
    if rule == "midpoint" and count == 2:
        found[1] = 0.5 * found[0]
    if rule == "official" and count == 3:
        found[2] = 0.5 * found[2]
    return found


def weights(nodes: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
    """The weights of up to three values at nodes[0] = 0, nodes[1], nodes[2] with the wanted moments.

    Unlike `lagrange_weights` it takes any moments, and tensors as well as floats.
    """
    if len(nodes) == 1:
        return [wanted[0]]
    if len(nodes) == 2:
        one = wanted[1] / nodes[1]
        return [wanted[0] - one, one]
    _, r, q = nodes
    one = (wanted[2] - q * wanted[1]) / (r * (r - q))
    two = (wanted[2] - r * wanted[1]) / (q * (q - r))
    return [wanted[0] - one - two, one, two]


def linear_step(
    form: str,
    t: Any,
    s: Any,
    h: Any,
    nodes: Sequence[Any],
    rule: str,
    eta: float = 0.0,
    phi: Callable[[int, Any], Any] = phi,
) -> tuple[Any, list[Any]]:
    """The coefficients of a step from t to s with lam = log(a/sigma), h = lam_s − lam_t, H = (1 + eta)·h:

        data form    z_s = sigma_s/sigma_t·e^(−eta·h)·z_t + a_s·H·sum_j w_j·x0_j,   moments at −H,
        noise form   z_s = a_s/a_t·z_t − (1 + eta)·sigma_s·h·sum_j w_j·eps_j,       moments at +h.

    Args:
        form: "data" or "noise", what is interpolated.
        t: level at the start, with attributes a and sigma, floats or tensors.
        s: level at the end.
        h: finite and not 0; negative towards more noise.
        nodes: (lam_j − lam_t)/h of the values, 0 first.
        rule: see `moments`.
        eta: 0 the ODE, 1 the SDE; floats only.
        phi: the phi functions for what h is.

    Returns:
        (coefficient of z_t, coefficients of the values).

    Reference: Lu et al. 2022 (DPM-Solver), equation 3.4; Lu et al. 2022 (DPM-Solver++), equations 8 and 18.
    """
    if form == "data":
        keep, length, z = s.sigma / t.sigma, (1.0 + eta) * s.a * h, -(1.0 + eta) * h
        keep = keep * math.exp(-eta * h) if eta else keep
    else:
        keep, length, z = s.a / t.a, -(1.0 + eta) * s.sigma * h, h
    found = weights(nodes, moments(len(nodes), z, rule, phi))
    return keep, [length * w for w in found]


def sde_spread(form: str, eta: float, s: Level, h: float) -> float:
    """The standard deviation of the draw of a step of the SDE.

    Data form sigma_s·sqrt(1 − e^(−2·eta·h)), noise form sigma_s·sqrt(eta·(e^(2h) − 1)): both are what the
    reverse SDE dz = (f·z − (1 + eta)/2·g²·score)·dt + sqrt(eta)·g·dw adds, given what they keep of z_t.
    """
    if eta == 0.0:
        return 0.0
    if form == "data":
        return s.sigma * math.sqrt(-math.expm1(-2.0 * eta * h))
    return s.sigma * math.sqrt(eta * math.expm1(2.0 * h))


def value(form: str, call: Call) -> Vector:
    """What a form interpolates: the denoised sample or the noise of a network call."""
    return call.d if form == "data" else call.e


def exponential_step(
    build: PlanBuilder,
    x: Vector,
    t: Level,
    s: Level,
    nodes: Sequence[Node],
    form: str,
    rule: str,
    eta: float = 0.0,
    noise_scale: float = 1.0,
    inner: bool = False,
) -> Vector:
    """Add the step from t to s that interpolates the calls `nodes` (that at t first).

    From a = 0 and to sigma = 0, where h is infinite, it is the limit of the first-order step in data form.
    """
    h = s.half_log_snr - t.half_log_snr
    if not math.isfinite(h):
        if eta == 0.0:
            return first_order_step(build, x, nodes[0].call, t, s)
        return build.step(s.t, {nodes[0].call.d: s.a}, noise=noise_scale * s.sigma)
    positions = [(node.half_log_snr - t.half_log_snr) / h for node in nodes]
    keep, found = linear_step(form, t, s, h, positions, rule, eta)
    terms = {x: keep} | {value(form, node.call): w for node, w in zip(nodes, found, strict=True)}
    return build.step(s.t, terms, noise=noise_scale * sde_spread(form, eta, s, h), inner=inner)


def denoise_to_zero(build: PlanBuilder, x: Vector, end: Level) -> None:
    """Add one more call at the end, whose denoised sample is the result; nothing if sigma = 0 already."""
    if end.sigma > 0.0:
        clean = build.path.t_clean
        build.step(clean, {build.ask(x).d: build.path.coefficients(clean)[0]})
