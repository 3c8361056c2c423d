"""The one denoising step: from the backbone's prediction at a fixed timestep to z0."""

from collections.abc import Callable

from torch import Tensor

from tudsr.errors import ConfigError

Z0_FROM: dict[str, Callable[..., Tensor]] = {
    "epsilon": lambda pred, z, alpha, sigma: (z - sigma * pred) / alpha,
    "v_prediction": lambda pred, z, alpha, sigma: alpha * z - sigma * pred,
    "sample": lambda pred, z, alpha, sigma: pred,
}
"""diffusers' prediction_type → z0; each takes (pred, z, sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t))."""

TARGET_OF: dict[str, Callable[..., Tensor]] = {
    "epsilon": lambda z0, noise, alpha, sigma: noise,
    "v_prediction": lambda z0, noise, alpha, sigma: alpha * noise - sigma * z0,
    "sample": lambda z0, noise, alpha, sigma: z0,
}
"""diffusers' prediction_type → what the prior is trained to predict from (z0, noise, alpha, sigma)."""


def z0_from_prediction(pred: Tensor, z: Tensor, alpha_bar_t: Tensor, prediction_type: str) -> Tensor:
    """Return z0 from the prediction at one timestep.

    Args:
        pred: the backbone's output, (B, C, h, w).
        z: the scaled latent that the backbone saw, (B, C, h, w).
        alpha_bar_t: cumulative product of alphas at t, a scalar or broadcastable to z, in (0, 1).
        prediction_type: diffusers' name: epsilon, v_prediction or sample.

    Returns:
        z0, (B, C, h, w), in the dtype that pred, z and alpha_bar_t promote to.

    Raises:
        ConfigError: for an unknown prediction_type.

    Source: METHOD («Generator»); v_prediction from Salimans and Ho 2022, eq. 10 and appendix D.
    """
    if prediction_type not in Z0_FROM:
        raise ConfigError(f"prediction_type {prediction_type!r} is unknown; accepted: {', '.join(Z0_FROM)}.")
    return Z0_FROM[prediction_type](pred, z, alpha_bar_t.sqrt(), (1 - alpha_bar_t).sqrt())
