"""Metrics of a model's features: the images after each of its cells, and their gradients."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate, pairwise

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Literal, Var
from jaxtyping import Array, Float, Key, PyTree, Shaped

from tenas_jax.errors import InputError
from tenas_jax.metrics.activations import bind
from tenas_jax.metrics.correlations import standardized, varies
from tenas_jax.metrics.model import Select, at_least_single, is_weight
from tenas_jax.numerics import PRECISION, highest_precision

Features = Sequence[Shaped[Array, "..."]]
"""Images [n, h, w, channels] after each cell; anything else is rejected."""
Values = dict[Var, Array]


def az_expressivity(features: Features) -> Float[Array, ""]:
    """Expressivity of AZ-NAS: the sum over cells of the entropy of their features' spectrum.

    The value of a cell is -sum_i p_i log(p_i + 1e-8), where p are the eigenvalues of the covariance
    of the channels over all pixels of all images, divided by their sum (Lee and Ham, CVPR 2024). It
    grows as the features fill their space more evenly, up to the logarithm of the channels.

    The published code also uses the features after the stem and after the residual blocks between
    stages; here the caller chooses them. A search uses those after each cell.

    Args:
        features: the images [n, h, w, channels] after each cell.

    Returns:
        A scalar in nats; higher is better. Minus infinity if the features after a cell are
        constant, as in the published code; NaN only if features are NaN.

    Raises:
        InputError: there are no features, or they are not images of real numbers.

    Example:
        >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(float(az_expressivity([x.reshape(1, 2, 2, 2)])), 3)  # log 2
        0.693
    """
    entropies = _entropies(features, 1)
    return _worst_if_constant(entropies, entropies.sum())


def az_progressivity(features: Features) -> Float[Array, ""]:
    """Progressivity of AZ-NAS: the smallest gain in expressivity from one cell to the next.

    It is min_l (s_l - s_(l-1)), where s_l is the expressivity of cell l (Lee and Ham, CVPR 2024).

    Args:
        features: the images [n, h, w, channels] after each cell; see `az_expressivity`.

    Returns:
        A scalar in nats; higher is better. Minus infinity if the features after a cell are
        constant, as in the published code; NaN only if features are NaN.

    Raises:
        InputError: there are fewer than two cells, or features are not images of real numbers.

    Example:
        >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> images = x.reshape(1, 2, 2, 2)
        >>> round(float(az_progressivity([images[..., :1], images])), 3)  # 0 to log 2
        0.693
    """
    entropies = _entropies(features, 2)
    return _worst_if_constant(entropies, jnp.diff(entropies).min())


def az_trainability(
    gradients: Sequence[tuple[Shaped[Array, "..."], Shaped[Array, "..."]]],
) -> Float[Array, ""]:
    """Trainability of AZ-NAS: the mean over cells of 2 - sigma - 1 / (sigma + 1e-6).

    sigma is the spectral norm of an estimate of the cell's Jacobian (Lee and Ham, CVPR 2024): the
    mean over all pixels of all images of the outer product of a random cotangent of the cell's
    output, with entries +-1, and the resulting gradient at the cell's input. The optimum is sigma =
    1, where gradients neither vanish nor explode. If the output is smaller than the input, the
    input pixels that correspond to one output pixel are treated as channels.

    Args:
        gradients: for each cell but the first, the cotangent of its features and the gradient by
            the features of the previous cell, both [n, h, w, channels], from `feature_gradients`.

    Returns:
        A scalar of at most about 0; higher is better. A cell without connections has about -10^6.
        Minus infinity if a cell is the identity, as in the published code.

    Raises:
        InputError: there are no cells, or sizes do not divide one another.

    Example:
        >>> signs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> cotangent = signs.reshape(1, 2, 2, 2)
        >>> round(float(az_trainability([(cotangent, 2 * cotangent)])), 3)  # 2 - 2 - 1 / 2
        -0.5
        >>> float(az_trainability([(cotangent, cotangent)]))
        -inf
    """
    if not gradients:
        raise InputError("trainability is of the step from one cell to the next: give two cells")
    return jnp.stack([_trainability(*each) for each in gradients]).mean()


def meco(features: Features) -> Float[Array, ""]:
    """MeCo: the sum over cells of the smallest eigenvalue of the correlation of their channels.

    The correlations are Pearson's, over the pixels of an image (Jiang et al., NeurIPS 2023). The
    published code uses one 64 x 64 image of Gaussian noise and the outputs of all modules. Here the
    value is the mean over the given images; a search uses the features after each cell.

    Args:
        features: the images [n, h, w, channels] after each cell.

    Returns:
        A scalar from 0 to the number of cells; higher is better. As in the published code, a
        constant channel has no correlation, not even with itself, so its image gives 0; an image
        with fewer pixels than channels also gives 0.

    Raises:
        InputError: there are no features, or they are not images of real numbers.

    Example:
        >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> float(meco([x.reshape(1, 2, 2, 2)]))
        1.0
    """
    return jnp.stack([_least_eigenvalues(x).mean() for x in _images(features, 1)]).sum()


@highest_precision()
def zen(
    f: Callable[[PyTree, Array], tuple[Array, Float[Array, " layers"]]],
    params: PyTree,
    x: Array,
    key: Key[Array, ""],
    *,
    select: Select = is_weight,
    gamma: float = 1e-2,
) -> Float[Array, ""]:
    """Zen-score, log E |f(e) - f(e + gamma e')|_1 + sum_l log sigma_l (Lin et al., ICCV 2021).

    f are the features before global pooling of a network with Gaussian weights of variance 1; e and
    e' are Gaussian images; sigma_l^2 is the variance that batch normalization l divides by,
    averaged over its channels.

    - As in the published code, the norm is the sum of absolute values (the paper has the Frobenius
      norm), and every batch normalization counts, including parallel ones.
    - As in the paper, the variances are those of the batch (the code has running averages, in which
      the initial 1 dominates).
    - In a search, f are the features after the last cell, before the last batch normalization,
      which does not count. Operators on no path do not count either. The shift is a single draw.

    Args:
        f: maps the parameters and images to the features [n, ...] and the logarithm of sigma_l of
            each batch normalization, 0 for absent ones.
        params: parameters; the values of selected ones are replaced.
        x: images [n, h, w, channels]; only their shape matters.
        key: key for the weights and images.
        select: whether the parameter at a path is a weight to draw; by default all but biases.
        gamma: size of the shift of images.

    Returns:
        A scalar; higher is better. Minus infinity if the features do not depend on the images.

    Example:
        >>> def f(params, x):
        ...     y = x @ params["kernel"]
        ...     return y / y.std(), jnp.log(y.std())[None]
        >>> x, key = jnp.zeros((8, 2, 2, 3)), jax.random.key(0)
        >>> scores = [zen(f, {"kernel": jnp.ones((3, c))}, x, key) for c in (4, 8)]
        >>> bool(scores[1] > scores[0])  # twice the channels
        True
    """
    weights, images, shift = jax.random.split(key, 3)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    drawn = [select(path) for path, _ in leaves]
    sizes = [leaf.size if own else 0 for own, (_, leaf) in zip(drawn, leaves, strict=True)]
    values = jax.random.normal(weights, (sum(sizes),), x.dtype)
    gaussian = [
        values[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype) if own else leaf
        for end, own, (_, leaf) in zip(accumulate(sizes), drawn, leaves, strict=True)
    ]
    noise = jax.random.normal(images, x.shape, x.dtype)
    both = jnp.stack([noise, noise + gamma * jax.random.normal(shift, x.shape, x.dtype)])
    # In a loop, so that the network is compiled once.
    features, deviations = lax.map(partial(f, jax.tree.unflatten(structure, gaussian)), both)
    distance = jnp.abs(features[0] - features[1]).reshape(len(x), -1).sum(1).mean()
    score: Array = jnp.log(distance) + deviations[0].sum()
    return score


@highest_precision()
def feature_gradients(
    f: Callable[[], Sequence[Array]], key: Key[Array, ""]
) -> list[tuple[Array, Array]]:
    """Random cotangents of a model's features, pulled back to the previous features.

    The model is cut between consecutive features, so that each gradient passes only through the
    part between them; together they cost one backward pass. The cut is made in the jaxpr, so no
    module needs to be edited.

    Args:
        f: computes the features, one array after each cell, each from the previous one.
        key: key for the signs.

    Returns:
        For each feature but the first, its cotangent, +-1 with equal probability, and the gradient
        by the previous feature, in the shape of that.

    Raises:
        InputError: a feature does not depend on the previous one.

    Example:
        >>> def f():
        ...     x = jnp.ones((1, 2))
        ...     return [x, 3 * x, 12 * x * x]
        >>> [(cotangent, gradient)] = feature_gradients(lambda: f()[:2], jax.random.key(0))
        >>> (gradient / cotangent).tolist()
        [[3.0, 3.0]]
        >>> feature_gradients(f, jax.random.key(0))
        Traceback (most recent call last):
        ...
        tenas_jax.errors.InputError: features 3 do not depend on features 2: give what the \
next cell reads
    """
    program = jax.make_jaxpr(f)()
    eqns, outputs = program.jaxpr.eqns, program.jaxpr.outvars
    known: Values = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    if not outputs or any(isinstance(output, Literal) for output in outputs):
        raise InputError("the features are constants: give what the next cell reads")
    known = _run(_needed(eqns, outputs[0], known), known)
    gradients = []
    for i, (before, after) in enumerate(pairwise(outputs), start=1):
        varying = {before}
        between: list[JaxprEqn] = []
        others: list[JaxprEqn] = []
        for eqn in _needed(eqns, after, known):
            depends = any(atom in varying for atom in eqn.invars if isinstance(atom, Var))
            (between if depends else others).append(eqn)
            varying.update(eqn.outvars if depends else ())
        if after not in varying:
            raise InputError(
                f"features {i + 1} do not depend on features {i}: give what the next cell reads"
            )
        known = _run(others, known)

        features, pullback = jax.vjp(_between(between, before, after, known), known[before])
        known[after] = features
        signs = jax.random.fold_in(key, i)
        cotangent = jax.random.rademacher(signs, features.shape, features.dtype)
        gradients.append((cotangent, pullback(cotangent)[0]))
    return gradients


def _needed(eqns: Sequence[JaxprEqn], target: Var, known: Iterable[Var]) -> list[JaxprEqn]:
    """The equations needed to compute a variable from known values, in order."""
    wanted, needed = {target}.difference(known), []
    for eqn in reversed(eqns):
        if wanted.intersection(eqn.outvars):
            needed.append(eqn)
            inputs = {atom for atom in eqn.invars if isinstance(atom, Var)}
            wanted |= inputs.difference(known)
    return needed[::-1]


def _run(eqns: Iterable[JaxprEqn], known: Values) -> Values:
    """Evaluate equations, and return all known values."""
    values = dict(known)
    for eqn in eqns:
        operands = [atom.val if isinstance(atom, Literal) else values[atom] for atom in eqn.invars]
        values |= zip(eqn.outvars, bind(eqn, operands), strict=True)
    return values


def _between(
    eqns: Sequence[JaxprEqn], before: Var, after: Var, known: Values
) -> Callable[[Array], Array]:
    """The function that maps one variable to another."""
    return lambda x: _run(eqns, known | {before: x})[after]


def _images(features: Features, fewest: int) -> list[Float[Array, "n h w channels"]]:
    """Check the features, and convert them to at least single precision."""
    if len(features) < fewest:
        raise InputError(
            f"number of features: {len(features)}, and this metric needs at least {fewest}"
        )
    for x in features:
        if x.ndim != 4 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(
                f"features are {x.dtype} of shape {x.shape}: give images [n, h, w, channels] of "
                "real numbers"
            )
    return [x.astype(at_least_single(x.dtype)) for x in features]


def _entropies(features: Features, fewest: int) -> Float[Array, "cell"]:
    """The entropy of each cell's spectrum; infinite if its features are constant."""
    return jnp.stack([_entropy(x) for x in _images(features, fewest)])


def _entropy(x: Float[Array, "n h w channels"]) -> Float[Array, ""]:
    pixels = x.reshape(-1, x.shape[-1])
    largest = jnp.abs(pixels).max()  # squares may underflow or overflow
    scaled = pixels / jnp.where(largest == 0, 1, largest)
    channels = varies(pixels, 0)
    centered = jnp.where(channels, scaled - scaled.mean(0, keepdims=True), 0)
    covariance = jnp.matmul(centered.T, centered, precision=PRECISION)
    finite, constant = jnp.isfinite(pixels).all(), ~channels.any()
    usable = jnp.where(finite & ~constant, covariance, jnp.eye(len(covariance), dtype=x.dtype))
    eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(usable), 0)
    parts = eigenvalues / eigenvalues.sum()
    entropy = -(parts * jnp.log(parts + 1e-8)).sum()
    return jnp.where(finite, jnp.where(constant, jnp.inf, entropy), jnp.nan)


def _worst_if_constant(entropies: Float[Array, "cell"], value: Array) -> Float[Array, ""]:
    value = jnp.where(jnp.isinf(entropies).any(), -jnp.inf, value)
    return jnp.where(jnp.isnan(entropies).any(), jnp.nan, value)


def _trainability(cotangent: Array, gradient: Array) -> Float[Array, ""]:
    """The term of one cell."""
    cotangent, gradient = _images([cotangent, gradient], 2)
    identity = jnp.array(False)
    if cotangent.shape == gradient.shape:
        identity = (cotangent == gradient).all()
    n, height, width, _ = cotangent.shape
    rows_per_pixel, columns_per_pixel = (
        gradient.shape[axis] // cotangent.shape[axis] for axis in (1, 2)
    )
    if gradient.shape[:3] != (n, height * rows_per_pixel, width * columns_per_pixel):
        raise InputError(
            f"features of shape {gradient.shape} before features of shape {cotangent.shape}: the "
            "size must be the same or a multiple"
        )
    blocks = gradient.reshape(n, height, rows_per_pixel, width, columns_per_pixel, -1)
    inputs = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n * height * width, -1)
    outputs = cotangent.reshape(len(inputs), -1)
    jacobian = jnp.matmul(inputs.T, outputs, precision=PRECISION) / len(inputs)
    finite = jnp.isfinite(jacobian).all()
    sigma = jnp.linalg.svd(jnp.where(finite, jacobian, 0), compute_uv=False)[0]
    value = jnp.where(identity, -jnp.inf, 2 - sigma - 1 / (sigma + 1e-6))
    return jnp.where(finite, value, jnp.nan)


def _least_eigenvalues(x: Float[Array, "n h w channels"]) -> Float[Array, "n"]:
    """The smallest eigenvalue of the channel correlations of each image."""
    n, *_, channels = x.shape
    rows = standardized(x.transpose(0, 3, 1, 2).reshape(n, channels, -1))
    correlations = jnp.matmul(rows, rows.transpose(0, 2, 1), precision=PRECISION)
    finite = jnp.isfinite(correlations).all((1, 2))
    eye = jnp.eye(channels, dtype=x.dtype)[None]
    usable = jnp.where(finite[:, None, None], correlations, eye)
    # Sequentially: on a CPU with two cores, several batches at a time deadlock, waiting for each
    # other's threads.
    least = jax.lax.map(lambda matrix: jnp.linalg.eigvalsh(matrix)[0], usable)
    return jnp.where(finite, jnp.maximum(least, 0), jnp.nan)
