"""The sizes of the proxy networks and of the images are fields."""

import dataclasses

import jax
import numpy as np
import pytest
from measuring import measure_all

from tenas_jax.architectures.space import ProxySize
from tenas_jax.data.images import image_set
from tenas_jax.errors import InputError
from tenas_jax.networks.layouts import NHWC
from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig
from tenas_jax.searching.measurement import Images
from tenas_jax.searching.problem import look_up
from tenas_jax.spaces import DARTS, NAS_BENCH_201, SPACES, TRANSNAS_BENCH_101, darts


def shapes(network, channels):
    x = jax.ShapeDtypeStruct((2, 8, 8, channels), np.float32)
    mask = NAS_BENCH_201.initial_mask() if network.space is NAS_BENCH_201 else None
    mask = network.space.initial_mask() if mask is None else mask
    return jax.eval_shape(network.init, jax.random.key(0), x, mask)["params"]


@pytest.mark.parametrize("space", SPACES.values(), ids=lambda space: space.name)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_networks_have_the_channels_that_are_asked_for(space, channels):
    params = shapes(space.supernet(ProxySize(5, channels=2), NHWC), channels)
    assert params["stem"]["kernel"].shape == (1, 3, 3, channels, 2)
    assert params["classifier"]["kernel"].shape[1] == 5
    region = shapes(space.region_network(ProxySize(), NHWC), channels)
    assert region["norm"]["scale"].shape[1] >= channels


def test_networks_have_the_cells_that_are_asked_for():
    def cells(space, number):
        params = shapes(space.supernet(ProxySize(cells=number), NHWC), 3)
        return sum(name.startswith("cell_") for name in params.get("cells", params))

    assert [cells(NAS_BENCH_201, n) for n in (None, 1, 2)] == [3, 3, 6]
    assert [cells(TRANSNAS_BENCH_101, n) for n in (None, 1)] == [10, 5]
    assert [cells(DARTS, n) for n in (None, 1, 5)] == [2, 1, 5]
    assert darts.proxy_cells(8) == tuple("reduce" if i in (2, 5) else "normal" for i in range(8))


def test_gray_images_and_all_channels_of_patches():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 4), np.uint8)
    for channels, region_channels in ((1, 1), (4, 4)):
        images = image_set(pixels[..., :channels], "noise")
        config = SearchConfig(
            images=10,
            image_size=8,
            image_channels=channels,
            metrics="naswot" if channels == 1 else "regions",
            ntk=NTKConfig(batch_size=4, channels=2),
            regions=RegionsConfig(batch_size=20, batches=1, channels=region_channels),
        )
        problem = look_up(config)
        values = jax.jit(measure_all(problem))(
            jax.random.key(0), NAS_BENCH_201.initial_mask(), Images.of(images)
        )
        (value,) = values.values()
        assert 1 < value < 100


def test_sizes_that_cannot_be_are_one_line():
    for fields, fault in (
        ({"ntk": NTKConfig, "channels": 0}, "ntk.channels must be an integer of at least 1"),
        ({"ntk": NTKConfig, "cells": 0}, "ntk.cells must be an integer of at least 1"),
        ({"ntk": RegionsConfig, "cells": 0}, "regions.cells must be an integer of at least 1"),
        ({"ntk": RegionsConfig, "channels": 0}, "regions.channels must be an integer of at"),
    ):
        kind = fields.pop("ntk")
        with pytest.raises(InputError, match=fault):
            kind(**fields)
    with pytest.raises(InputError, match=r"regions.channels must be 1 or image_channels 3, not 2"):
        SearchConfig(regions=RegionsConfig(channels=2))
    with pytest.raises(InputError, match="image_channels must be an integer of at least 1"):
        SearchConfig(image_channels=0)
    with pytest.raises(InputError, match="image_size must be a multiple of 4 for nas-bench-201"):
        look_up(dataclasses.replace(SearchConfig(), image_size=30))
