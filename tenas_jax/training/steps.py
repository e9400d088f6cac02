"""Training steps: pure functions of a state and a batch, on one device or many."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, UInt8

from tenas_jax.architectures.cell_space import CellSpace
from tenas_jax.data.normalization import Normalization
from tenas_jax.errors import InputError
from tenas_jax.networks.initializers import initialize
from tenas_jax.numerics import random_key
from tenas_jax.spaces import get_space
from tenas_jax.training.augment import evaluation_images, training_images
from tenas_jax.training.recipes import Recipe

BATCH = "batch"  # the mesh axis over which batches are sharded
REPLICATED, SPREAD = PartitionSpec(), PartitionSpec(BATCH)


class Totals(NamedTuple):
    """Sums over images.

    Attributes:
        loss: sum of the losses.
        correct: number of images classified correctly.
    """

    loss: Float[Array, ""]
    correct: Int[Array, ""]


class TrainState(NamedTuple):
    """The state needed by the next step.

    Attributes:
        step: number of steps done.
        variables: parameters and running statistics of the network.
        optimizer: state of the optimizer.
        totals: sums over the images of this epoch.
    """

    step: Int[Array, ""]
    variables: PyTree
    optimizer: PyTree
    totals: Totals


class StepInfo(NamedTuple):
    """What happened in a step.

    Attributes:
        loss: mean over the batch, with label smoothing and the auxiliary head.
        accuracy: fraction of the batch classified correctly.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


TrainStep = Callable[
    [TrainState, UInt8[Array, "n size size 3"], Int[Array, " n"]], tuple[TrainState, StepInfo]
]
EvaluateStep = Callable[[PyTree, UInt8[Array, "n size size 3"], Int[Array, " n"]], Totals]


def make_network(genotype: str, recipe: Recipe) -> nn.Module:
    """Make the network of a genotype as a recipe says.

    Args:
        genotype: an architecture of the recipe's space.
        recipe: its size, stem and classes.

    Returns:
        A Flax module.

    Raises:
        InputError: the genotype is not of this space, or the space has no such network.
    """
    space = get_space(recipe.space)
    mask = space.from_string(genotype)
    if not isinstance(space, CellSpace):
        raise InputError(
            f"{space.name} is not a cell space: train the module space.network(mask, ...) yourself"
        )
    network: nn.Module = space.network(
        mask,
        num_classes=recipe.num_classes,
        channels=recipe.channels,
        cells=recipe.cells,
        stem=recipe.stem,
        auxiliary=recipe.auxiliary > 0,
        dtype=jnp.dtype(recipe.dtype),
    )
    return network


def make_mesh(devices: Sequence[jax.Device], batch_size: int) -> Mesh:
    """A mesh of devices that share each batch.

    Args:
        devices: the devices of all processes.
        batch_size: number of images over all devices.

    Returns:
        A mesh of one axis.

    Raises:
        InputError: the batch cannot be split equally.
    """
    if batch_size % len(devices):
        raise InputError(
            f"{len(devices)} devices cannot share a batch of {batch_size} equally: use a multiple "
            f"of {len(devices)} as --batch-size, or other --devices"
        )
    return Mesh(np.array(devices), (BATCH,))


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> optax.Schedule:
    r"""Cosine decay after a linear warmup.

    .. math:: \eta_t = \frac{\eta}{2}\left(1 + \cos\frac{\pi (t - w)}{T - w}\right), t \ge w;
        \quad \eta_t = \eta\, t / w, t < w

    Args:
        recipe: the highest rate, the number of epochs and of warmup epochs.
        steps_per_epoch: number of steps per epoch.

    Returns:
        A function of the number of steps done.

    Example:
        >>> from tenas_jax.training.recipes import RECIPES
        >>> rate = learning_rate(RECIPES["nas-bench-201"], steps_per_epoch=10)
        >>> [round(float(rate(step)), 4) for step in (0, 1000, 2000)]
        [0.1, 0.05, 0.0]
    """
    warmup = recipe.warmup_epochs * steps_per_epoch
    cosine = optax.cosine_decay_schedule(
        recipe.learning_rate, recipe.epochs * steps_per_epoch - warmup
    )
    if not warmup:
        return cosine
    rise = optax.linear_schedule(0.0, recipe.learning_rate, warmup)
    return optax.join_schedules([rise, cosine], [warmup])


def drop_path_rate(recipe: Recipe, step: Int[Array, ""], steps_per_epoch: int) -> Float[Array, ""]:
    """The drop path rate of an epoch, which rises linearly as in DARTS.

    Args:
        recipe: the final rate and the number of epochs.
        step: number of steps done.
        steps_per_epoch: number of steps per epoch.

    Returns:
        The probability of dropping an operator for an image.
    """
    return recipe.drop_path * (step // steps_per_epoch) / recipe.epochs


def make_optimizer(recipe: Recipe, steps_per_epoch: int) -> optax.GradientTransformation:
    """Stochastic gradient descent in PyTorch's order: clip, add weight decay, momentum, scale.

    Args:
        recipe: the hyperparameters.
        steps_per_epoch: number of steps per epoch.

    Returns:
        An optax optimizer.
    """
    decayed = None if recipe.decay_norm_and_bias else _is_kernel
    clip = [] if recipe.clip_norm is None else [optax.clip_by_global_norm(recipe.clip_norm)]
    return optax.chain(
        *clip,
        optax.add_decayed_weights(recipe.weight_decay, decayed),
        optax.sgd(learning_rate(recipe, steps_per_epoch), recipe.momentum or None, recipe.nesterov),
    )


def cross_entropy(
    logits: Float[Array, "n classes"], labels: Int[Array, " n"], smoothing: float = 0.0
) -> Float[Array, " n"]:
    r"""Cross entropy with label smoothing.

    .. math:: -\sum_k \left((1 - s)\, [k = y] + s / K\right) \log p_k

    Args:
        logits: logits of K classes.
        labels: y.
        smoothing: s.

    Returns:
        The loss of each image.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    losses: Array = optax.softmax_cross_entropy(logits, targets)
    return losses


def initial_variables(network: nn.Module, recipe: Recipe) -> PyTree:
    """Initial parameters and running statistics.

    Args:
        network: the network.
        recipe: the size of its images and the seed of its weights.

    Returns:
        The collections `params` and `batch_stats`.
    """
    shapes = abstract_variables(network, recipe)
    key, _ = _init_arguments(recipe)
    statistics = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, float(path[-1].key == "var"), leaf.dtype),
        shapes["batch_stats"],
    )
    return {
        "params": jax.jit(lambda key: initialize(shapes["params"], "pytorch", key))(key),
        "batch_stats": statistics,
    }


def abstract_variables(network: nn.Module, recipe: Recipe) -> PyTree:
    """The shapes of parameters and running statistics.

    Args:
        network: the network.
        recipe: the size of its images.

    Returns:
        The collections `params` and `batch_stats`, of `jax.ShapeDtypeStruct`.
    """
    return jax.eval_shape(network.init, *_init_arguments(recipe))


def initial_state(variables: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step.

    Args:
        variables: the variables of the network.
        optimizer: the optimizer.

    Returns:
        The state.
    """
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, variables, optimizer.init(variables["params"]), zero_totals())


def zero_totals() -> Totals:
    """The sums over no images.

    Returns:
        Zeros.
    """
    return Totals(jnp.zeros(()), jnp.zeros((), jnp.int32))


def make_train_step(
    network: nn.Module,
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    steps_per_epoch: int,
    normalization: Normalization,
    mesh: Mesh,
) -> TrainStep:
    """Compile a training step, which depends only on its arguments and the seed.

    Args:
        network: the network.
        recipe: the other settings.
        optimizer: the optimizer.
        steps_per_epoch: number of steps per epoch.
        normalization: mean and standard deviation of the images.
        mesh: the devices.

    Returns:
        A function of a state on all devices and of a batch sharded over them.
    """

    def update(
        state: TrainState, images: Array, labels: Array, shards: str | None = None
    ) -> tuple[TrainState, StepInfo]:
        """Update with all images or, given the name of the mesh axis, with a device's images."""
        key = jax.random.fold_in(jax.random.fold_in(random_key(recipe.seed), 1), state.step)
        if shards:
            key = jax.random.fold_in(key, jax.lax.axis_index(shards))
        augment_key, drop_path_key = jax.random.split(key)
        inputs = training_images(augment_key, images, recipe, normalization)

        def loss_of(params: PyTree) -> tuple[Array, tuple[PyTree, Array]]:
            rate = None
            if recipe.drop_path:
                rate = drop_path_rate(recipe, state.step, steps_per_epoch)
            (logits, auxiliary), updated = network.apply(
                {**state.variables, "params": params},
                inputs,
                train=True,
                drop_path_rate=rate,
                mutable=["batch_stats"],
                rngs={"drop_path": drop_path_key},
            )
            loss = cross_entropy(logits, labels, recipe.label_smoothing).mean()
            if auxiliary is not None:
                extra = cross_entropy(auxiliary, labels, recipe.label_smoothing).mean()
                loss += recipe.auxiliary * extra
            return loss, (updated, (logits.argmax(-1) == labels).mean())

        params = state.variables["params"]
        (loss, (updated, accuracy)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        if shards:
            loss, updated, accuracy, gradient = jax.lax.pmean(
                (loss, updated, accuracy, gradient), shards
            )
        change, optimizer_state = optimizer.update(gradient, state.optimizer, params)
        count = len(images) * (mesh.size if shards else 1)
        correct = jnp.round(accuracy * count).astype(jnp.int32)
        totals = Totals(state.totals.loss + loss * count, state.totals.correct + correct)
        variables = {**updated, "params": optax.apply_updates(params, change)}
        state = TrainState(state.step + 1, variables, optimizer_state, totals)
        return state, StepInfo(loss, accuracy)

    # The compiler makes each mean a mean over all devices.
    step: TrainStep = update
    if not recipe.sync_batch_norm:
        step = jax.shard_map(
            partial(update, shards=BATCH),
            mesh=mesh,
            in_specs=(REPLICATED, SPREAD, SPREAD),
            out_specs=REPLICATED,
            check_vma=False,  # otherwise gradients would be summed before they are averaged
        )
    return jax.jit(step, out_shardings=NamedSharding(mesh, REPLICATED))


def make_evaluate_step(
    network: nn.Module, recipe: Recipe, normalization: Normalization, mesh: Mesh
) -> EvaluateStep:
    """Compile the evaluation of a batch.

    Args:
        network: the network.
        recipe: the size of the images.
        normalization: mean and standard deviation of the images.
        mesh: the devices.

    Returns:
        A function of the network's variables on all devices and of a batch sharded over them.
            Images with a negative label are padding and do not count.
    """

    def evaluate(variables: PyTree, images: Array, labels: Array) -> Totals:
        logits, _ = network.apply(variables, evaluation_images(images, recipe, normalization))
        counts = labels >= 0
        losses = cross_entropy(logits, jnp.maximum(labels, 0))
        correct = counts & (logits.argmax(-1) == labels)
        return Totals(jnp.where(counts, losses, 0.0).sum(), correct.sum())

    return jax.jit(evaluate, out_shardings=NamedSharding(mesh, REPLICATED))


def inference(
    network: nn.Module, variables: PyTree, recipe: Recipe, normalization: Normalization
) -> Callable[[UInt8[Array, "n size size 3"]], Float[Array, "n classes"]]:
    """The trained network as a function of images only.

    Args:
        network: the network.
        variables: its parameters and running statistics.
        recipe: the size of the images.
        normalization: mean and standard deviation of the images.

    Returns:
        A function from images with pixels from 0 to 255 to logits.
    """
    variables = jax.tree.map(jnp.asarray, variables)

    def logits_of(images: UInt8[Array, "n size size 3"]) -> Float[Array, "n classes"]:
        logits, _ = network.apply(variables, evaluation_images(images, recipe, normalization))
        return jnp.asarray(logits)

    return logits_of


def _init_arguments(recipe: Recipe) -> tuple[Array, Array]:
    images = jnp.zeros((2, recipe.image_size, recipe.image_size, 3))
    return jax.random.fold_in(random_key(recipe.seed), 0), images


def _is_kernel(params: PyTree) -> PyTree:
    """Whether a parameter is neither a bias nor of a batch norm."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in ("scale", "bias"), params
    )
