"""The predictions by name, each one linear relation."""

from dataclasses import dataclass

from fewstep.core.predictions.base import (
    Affine,
    LinearPrediction,
    Point,
    Prediction,
    Relation,
    Weights,
)


def _x0(point: Point) -> Relation:
    """out = x0."""
    return Relation(x0=1.0)


def _eps(point: Point) -> Relation:
    """out = eps."""
    return Relation(eps=1.0)


def _scaled_eps(point: Point) -> Relation:
    """out = sigma·eps = x - a·x0 - b·y (ResShift's ``epsilon_scale``)."""
    return Relation(x=1.0, x0=-point.a, y=-point.b)


def _score(point: Point) -> Relation:
    """out = -eps/sigma, the gradient of log p(x_t | x0, y)."""
    return Relation(scale=point.sigma, eps=-1.0)


def _v(point: Point) -> Relation:
    """out = a·eps - sigma·x0 on variance-preserving paths; otherwise as the path says."""
    u, w, s = point.path.v_weights(point.a, point.sigma)
    return Relation(x0=u, eps=w, y=s)


def _velocity(point: Point) -> Relation:
    """out = dx/dt by the time that the network is told (dx/du = eps - x0 on rectified flow)."""
    path, t = point.path, point.t
    da, db, dsigma = path.velocity(t) if isinstance(t, float | int) else path.velocity_at(t)
    return Relation(x0=da, eps=dsigma, y=db)


def _average_velocity(point: Point) -> Relation:
    """out = (x_t - x0)/(t - t_clean), the mean velocity from the clean end."""
    return Relation(scale=point.path.elapsed(point.t), x=1.0, x0=-1.0)


def _residual(point: Point) -> Relation:
    """out = y - x0."""
    return Relation(x0=-1.0, y=1.0)


def _resnoise(point: Point) -> Relation:
    """out = eps + c·(y - x0), with c(t) of the Resfusion table."""
    path, t = point.path, point.t
    weight = getattr(path, "resnoise_weight", None)
    if weight is None:
        raise ValueError(f"prediction 'resnoise' needs a Resfusion path, got {type(path).__name__}")
    c = weight(t) if isinstance(t, float | int) else path.resnoise_weight_at(t)  # type: ignore[attr-defined]
    return Relation(x0=-c, eps=1.0, y=c)


def _edm(point: Point) -> Relation:
    """out = F of EDM's preconditioning, x0 = c_skip·x + c_out·F with the path's ``sigma_data`` (sd).

    c_skip = sd²·a/(sigma² + a²·sd²) on x - b·y and c_out = sigma·sd/sqrt(sigma² + a²·sd²); with a = 1 and
    b = 0 these are the published ones.

    Reference: Karras et al. 2022, equation 7 and table 1.
    """
    sd = point.path.sigma_data
    total = point.sigma * point.sigma + point.a * point.a * sd**2
    skip = sd**2 * point.a / total
    return Relation(scale=point.sigma * sd / total**0.5, x=-skip, x0=1.0, y=skip * point.b)


def _edm_boundary(point: Point) -> Relation:
    """out = F of a consistency model, x0 = c_skip·z/a + c_out·F, exactly z/a at t_min.

    With kappa = sigma/a, d = kappa − kappa(t_min) and the path's ``sigma_data`` (sd):
    c_skip = sd²/(d² + sd²) and c_out = sd·d/sqrt(kappa² + sd²). Far from t_min this is "edm", so the weights
    of an "edm" network are the natural start.

    Reference: Song, Dhariwal, Chen and Sutskever 2023, "Consistency Models", appendix C.
    """
    path, sd = point.path, point.path.sigma_data
    a, _, sigma = path.coefficients(path.t_min)
    kappa = point.sigma / point.a
    distance = kappa - sigma / a
    skip = sd**2 / (distance * distance + sd**2)
    return Relation(
        scale=sd * distance / (kappa * kappa + sd**2) ** 0.5,
        x=-skip / point.a,
        x0=1.0,
        y=skip * point.b / point.a,
    )


@dataclass(frozen=True)
class ResidualNoise(Prediction):
    """Two heads, R = y - x0 and eps, chunked along dimension 1: x0 = (x - b·R - sigma·eps)/(a + b).

    Neither x0 nor eps needs y.

    Reference: Liu et al. 2024 (RDDM), equation 10.
    """

    name: str = "residual+noise"
    heads = 2
    needs_y = True

    def requires_y(self, path):
        return False

    def targets_at(self, point):
        return Weights(-1.0, 0.0, 1.0), Weights(0.0, 1.0, 0.0)

    def x0_at(self, point):
        total = point.a + point.b
        return Affine(1 / total, (-point.b / total, -point.sigma / total), 0.0)

    def eps_at(self, point):
        return Affine(0.0, (0.0, 1.0), 0.0)

    def _from_x0_at(self, point):
        residual = Affine(0.0, (-1.0,), 1.0)
        return residual, Affine(1 / point.sigma, (-point.a / point.sigma,), -point.b / point.sigma)

    def _given(self, weight, y, path):
        if y is None and not (isinstance(weight, float) and weight == 0):
            raise ValueError(f"y is needed by prediction {self.name!r}, got None")
        return y


_PREDICTIONS: dict[str, Prediction] = {
    prediction.name: prediction
    for prediction in (
        LinearPrediction("x0", _x0, is_direct=True),
        LinearPrediction("eps", _eps),
        LinearPrediction("scaled-eps", _scaled_eps),
        LinearPrediction("score", _score),
        LinearPrediction("v", _v),
        LinearPrediction("velocity", _velocity),
        LinearPrediction("average-velocity", _average_velocity, is_direct=True),
        LinearPrediction("residual", _residual, needs_y=True),
        ResidualNoise(),
        LinearPrediction("resnoise", _resnoise, needs_y=True),
        LinearPrediction("edm", _edm),
        LinearPrediction("edm-boundary", _edm_boundary),
    )
}


def names() -> tuple[str, ...]:
    """Return the names that ``get`` knows."""
    return tuple(_PREDICTIONS)


def get(name: str | Prediction) -> Prediction:
    """Return the prediction of that name (a prediction is returned as it is).

    Raises:
        ValueError: unknown name; the message lists the known ones.

    Example:
        >>> from fewstep.core import paths
        >>> get("v").target_weights(paths.RectifiedFlow(), 1.0)
        (Weights(x0=-1.0, eps=0.0, y=0.0),)
    """
    if isinstance(name, Prediction):
        return name
    if name not in _PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(map(repr, _PREDICTIONS))}, got {name!r}")
    return _PREDICTIONS[name]
