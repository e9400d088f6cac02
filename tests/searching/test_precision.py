"""Products at the highest precision on accelerators, in programs lowered for them."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measuring import measure_all

from tenas_jax import empirical_ntk, flax_op, measure
from tenas_jax.data.images import ImageSet
from tenas_jax.metrics.registry import METRICS
from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig
from tenas_jax.searching.measurement import Images
from tenas_jax.searching.problem import look_up
from tenas_jax.spaces import NAS_BENCH_201

# They need a network that hands out more than logits.
OF_SPACES = ["zen", "meco", *(name for name in METRICS if name.startswith("az_"))]
OF_MODELS = [
    name for name, metric in METRICS.items() if metric.measure is not None and name not in OF_SPACES
]


class Model(nn.Module):
    """A user's layers, which name no precision."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(2, (3, 3))(x))
        x = nn.relu(nn.Conv(2, (3, 3), feature_group_count=2)(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Convolution(nn.Module):
    """A user's operator."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        return nn.Conv(self.features, (3, 3), strides=self.stride)(nn.relu(x))


OWN = dataclasses.replace(
    NAS_BENCH_201,
    name="own",
    operators=(*NAS_BENCH_201.operators[:1], ("own_conv", flax_op(Convolution))),
)


@pytest.fixture(params=["cuda", "tpu"])
def products(request, monkeypatch):
    """A function that lowers another for an accelerator; it counts products by their precision."""
    backend = {"cuda": "gpu", "tpu": "tpu"}[request.param]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    def products(function, *arguments):
        traced = jax.jit(function).trace(*arguments)
        text = traced.lower(lowering_platforms=(request.param,)).as_text()
        lines = re.findall(r"stablehlo\.(?:dot_general|convolution|dot)\b.*", text)
        highest = [line for line in lines if line.count("HIGHEST") == 2]
        return len(highest), len(lines) - len(highest)

    return products


def model_and_samples():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 1)), "float32")
    params = Model().init(jax.random.key(0), x)["params"]
    return lambda params, x: Model().apply({"params": params}, x), params, x


def test_all_metrics_of_a_users_model(products):
    apply_fn, params, x = model_and_samples()
    labels = jnp.array([0, 1, 2, 0])
    highest, others = products(
        lambda params, x: measure(apply_fn, params, x, labels=labels, metrics=OF_MODELS), params, x
    )
    assert highest > 50
    assert others == 0


@pytest.mark.parametrize("engine", ["chunked", "neural-tangents"])
def test_a_users_own_precision_is_left_alone(engine, products):
    apply_fn, params, x = model_and_samples()
    by_default, alone = (
        products(lambda params, x: empirical_ntk(apply_fn, params, x, engine=engine), params, x),
        products(apply_fn, params, x),
    )
    assert by_default[0] > 3
    assert by_default[1] == 0
    assert alone == (0, 3)  # such as in training
    with jax.default_matmul_precision("default"):
        _, others = products(
            lambda params, x: empirical_ntk(apply_fn, params, x, engine=engine), params, x
        )
    assert others > 3


@pytest.mark.parametrize(
    ("space", "metrics"),
    [(NAS_BENCH_201, "kappa,regions"), (NAS_BENCH_201, ",".join(OF_SPACES)), (OWN, "kappa")],
    ids=["kappa and regions", "features", "own operator"],
)
def test_a_row_of_a_search(space, metrics, products):
    config = SearchConfig(
        images=16,
        image_size=8,
        padding=1,
        ntk=NTKConfig(batch_size=4, channels=2),
        regions=RegionsConfig(batch_size=20, batches=2),
        metrics=metrics,
    )
    image_set = ImageSet(np.zeros((16, 8, 8, 3), np.uint8), (0.5,) * 3, (0.25,) * 3, "none")
    problem = dataclasses.replace(look_up(config), space=space)
    highest, others = products(
        measure_all(problem), jax.random.key(0), space.initial_mask(), Images.of(image_set)
    )
    assert highest > 5
    assert others == 0
