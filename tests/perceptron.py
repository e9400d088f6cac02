"""A network of two layers in JAX and in NumPy, which is differentiated by differences."""

import jax
import jax.numpy as jnp
import numpy as np

N, INPUTS, HIDDEN, CLASSES = 5, 3, 4, 3


def perceptron(params, x):
    return jax.nn.relu(x @ params["first"]["kernel"]) @ params["second"]["kernel"]


def unravel(theta):
    """The kernels of both layers, from one vector."""
    first, second = np.split(np.asarray(theta), [INPUTS * HIDDEN])
    return first.reshape(INPUTS, HIDDEN), second.reshape(HIDDEN, CLASSES)


def numpy_logits(theta, x):
    first, second = unravel(theta)
    return np.maximum(x @ first, 0) @ second


def numpy_loss(theta, x, labels):
    """Mean cross-entropy."""
    logits = numpy_logits(theta, x)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -log_p[np.arange(len(x)), labels].mean()


def differences(f, theta, step=1e-5):
    """The derivatives of f, one parameter after the other."""
    steps = step * np.eye(len(theta))
    return np.stack([(f(theta + s) - f(theta - s)) / (2 * step) for s in steps])


def random_case():
    """Weights as a vector and as a tree, samples, labels."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=INPUTS * HIDDEN + HIDDEN * CLASSES)
    first, second = map(jnp.asarray, unravel(theta))
    params = {"first": {"kernel": first}, "second": {"kernel": second}}
    return theta, params, rng.normal(size=(N, INPUTS)), rng.integers(CLASSES, size=N)
