"""The metrics that architectures can be scored by: which direction is better, and who says so."""

from typing import NamedTuple

from tenas_jax.errors import InputError


class Metric(NamedTuple):
    """A column of measurements."""

    name: str
    """Its name on the command line and in files."""
    direction: int
    """+1 where higher is better, -1 where lower is."""
    label: str
    """Its name for people."""
    source: str
    """Where it comes from."""
    positive: bool = True
    """Whether all its values are positive."""


KAPPA = Metric("kappa", -1, "NTK condition number", "Chen et al. 2021, eq. 3")
REGIONS = Metric("regions", +1, "linear regions", "Chen et al. 2021, eq. 4")
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        KAPPA,
        REGIONS,
        Metric("ntk_trace", +1, "NTK trace", "Shu et al. 2022, NASI"),
        Metric("ntk_mean_eigenvalue", +1, "mean NTK eigenvalue", "Shu et al. 2022, NASI"),
        Metric("naswot", +1, "NASWOT", "Mellor et al. 2021", positive=False),
        Metric("swap", +1, "SWAP", "Peng et al. 2024"),
        Metric("synflow", +1, "log synflow", "Tanaka et al. 2020", positive=False),
        Metric("grad_norm", +1, "gradient norm", "Abdelfattah et al. 2021"),
        Metric("snip", +1, "SNIP", "Lee et al. 2019; Abdelfattah et al. 2021"),
        Metric("zico", +1, "ZiCo", "Li et al. 2023", positive=False),
        Metric("parameters", +1, "parameters", "trivial"),
        Metric("flops", +1, "FLOPs", "trivial"),
    )
}


def get_metric(name: str) -> Metric:
    """The metric of that name.

    Args:
        name: a key of `METRICS`.

    Returns:
        Its name, direction, label and source.

    Raises:
        InputError: no metric has this name.

    Example:
        >>> get_metric("kappa").direction
        -1
        >>> get_metric("kapa")
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: unknown metric 'kapa': choose from kappa, regions, ntk_trace, \
ntk_mean_eigenvalue, naswot, swap, synflow, grad_norm, snip, zico, parameters, flops
    """
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}: choose from {', '.join(METRICS)}")
    return METRICS[name]
