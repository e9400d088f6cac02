"""Labeled images: what is held out, in which order batches come, and what cannot be used."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from tenas_jax.data import labeled as loader
from tenas_jax.data.labeled import batches, epoch_order, held_out_part, load_split
from tenas_jax.errors import InputError
from tenas_jax.training.recipes import RECIPES


def recipe(source, **changes):
    fields = {"num_classes": 3, "image_size": 8, "batch_size": 4, "data": source, **changes}
    return dataclasses.replace(RECIPES["nas-bench-201"], **fields)


def contents(images):
    return images.take(np.arange(images.count))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (38, 8, 8, 3), np.uint8)


@pytest.fixture
def npz(tmp_path, pixels):
    np.savez(tmp_path / "data.npz", x=pixels, y=np.arange(38) % 3)
    return f"npz:{tmp_path / 'data.npz'}"


@pytest.fixture
def folder(tmp_path, pixels):
    for index, image in enumerate(pixels):
        (tmp_path / f"class-{index % 3}").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"class-{index % 3}" / f"{index:02}.png")
    return f"folder:{tmp_path}"


def test_the_last_sixth_of_each_class_is_held_out():
    labels = np.array([0] * 13 + [2] * 5 + [1] * 6)
    assert held_out_part(labels).nonzero()[0].tolist() == [11, 12, 23]
    with pytest.raises(InputError, match="give --test-data"):
        held_out_part(np.arange(20))


def test_arrays_are_split_and_normalized_by_what_is_trained_on(npz, pixels):
    split = load_split(recipe(npz))
    held_out = held_out_part(np.arange(38) % 3)
    assert held_out.sum() == 6
    for images, part in ((split.train, ~held_out), (split.test, held_out)):
        found, labels = contents(images)
        assert (found == pixels[part]).all()
        assert (labels == (np.arange(38) % 3)[part]).all()
    trained = pixels[~held_out].reshape(-1, 3) / 255
    np.testing.assert_allclose(split.normalization.mean, trained.mean(0))
    np.testing.assert_allclose(split.normalization.std, trained.std(0))


def test_a_folder_per_class_holds_the_same(npz, folder, pixels):
    split = load_split(recipe(folder))
    assert split.train.classes == ("class-0", "class-1", "class-2")
    found, labels = contents(split.train)
    of_arrays, labels_of_arrays = contents(load_split(recipe(npz)).train)
    order = np.argsort(labels_of_arrays, kind="stable")
    assert (found == of_arrays[order]).all()
    assert (labels == labels_of_arrays[order]).all()


def test_images_that_do_not_fit_into_memory_are_the_same(folder, monkeypatch):
    in_memory = load_split(recipe(folder, image_size=12, crop="resized"))
    monkeypatch.setattr(loader, "IN_MEMORY", 0)
    threads = threading.active_count()
    read_anew = load_split(recipe(folder, image_size=12, crop="resized"))
    chosen = np.array([5, 0, 7])
    for one, other in zip(in_memory.train.take(chosen), read_anew.train.take(chosen), strict=True):
        assert (one == other).all()
    assert threading.active_count() == threads
    assert in_memory.train.take(chosen)[0].shape == (3, 14, 14, 3)
    assert in_memory.normalization == read_anew.normalization


def test_test_data_of_the_same_classes(npz, folder, tmp_path):
    split = load_split(recipe(npz, test_data=npz))
    assert split.train.count == split.test.count == 38
    assert split.train.fingerprint == split.test.fingerprint
    with pytest.raises(InputError, match=r"has other classes \(class-0, class-1, class-2\)"):
        load_split(recipe(npz, test_data=folder))
    (tmp_path / "class-1").rename(tmp_path / "class-9")
    with pytest.raises(InputError, match="has other classes"):
        loader.load_test_data(folder, recipe(folder), ("class-0", "class-1", "class-2"))


def test_fingerprints_tell_images_and_labels_apart(tmp_path, pixels, npz):
    found = {load_split(recipe(npz)).train.fingerprint}
    for x, y in ((pixels ^ 1, np.arange(38) % 3), (pixels, (np.arange(38) + 1) % 3)):
        np.savez(tmp_path / "data.npz", x=x, y=y)
        found.add(load_split(recipe(npz)).train.fingerprint)
    assert len(found) == 3


def test_the_order_depends_on_seed_and_epoch_alone():
    orders = [epoch_order(50, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    assert (epoch_order(50, seed=1, epoch=1) == orders[3]).all()


@pytest.mark.parametrize("devices", [1, 4])
def test_batches_are_spread_over_the_devices_in_order(npz, devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))
    spread = NamedSharding(mesh, PartitionSpec("batch"))
    images = load_split(recipe(npz)).train
    order = epoch_order(images.count, seed=3, epoch=0)[:27]
    found = list(batches(images, order, 4, spread))
    assert len(found) == 6
    for batch, (x, y) in enumerate(found):
        expected, labels = images.take(order[4 * batch : 4 * batch + 4])
        assert (np.asarray(x) == expected).all() and (np.asarray(y) == labels).all()
        assert x.sharding == spread
    (first, _), *_ = batches(images, order[8:], 4, spread)
    assert (np.asarray(first) == np.asarray(found[2][0])).all()


@pytest.fixture(scope="module")
def tfds_data(tmp_path_factory):
    """Prepared data sets of 20 and 8 images: `small` with a validation split, `whole` without."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features

    class Small(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        splits = ("train", 20), ("validation", 8), ("test", 4)

        def _info(self):
            label = features.ClassLabel(names=["cat", "dog"])
            kinds = {"image": features.Image(shape=(8, 8, 1)), "label": label}
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(kinds))

        def _split_generators(self, _):
            return {name: self._generate_examples(count) for name, count in self.splits}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": np.full((8, 8, 1), i * 12, np.uint8), "label": i % 2}

    class Whole(Small):
        splits = (("train", 20),)

    data_dir = tmp_path_factory.mktemp("tfds")
    Small(data_dir=data_dir, file_format="array_record").download_and_prepare()
    Whole(data_dir=data_dir).download_and_prepare()
    return str(data_dir)


def test_tfds_is_read_at_once_or_by_the_record(tfds_data, monkeypatch):
    small = recipe("tfds:small", num_classes=2, data_dir=tfds_data)
    at_once = load_split(small)
    assert (at_once.train.count, at_once.test.count) == (20, 8)
    assert at_once.train.classes == ("cat", "dog")
    x, y = contents(at_once.train)
    numbers = x[:, 0, 0, 0] // 12
    assert sorted(numbers) == list(range(20)) and (y == numbers % 2).all()
    monkeypatch.setattr(loader, "IN_MEMORY", 0)
    by_the_record = load_split(small)
    for one, other in zip(contents(at_once.test), contents(by_the_record.test), strict=True):
        assert (one == other).all()


def test_unusable_tfds_data_sets_are_explained(tfds_data, monkeypatch):
    whole = recipe("tfds:whole", num_classes=2, data_dir=tfds_data)
    with pytest.raises(InputError, match="no split validation or test"):
        load_split(whole)
    monkeypatch.setattr(loader, "IN_MEMORY", 0)
    with pytest.raises(InputError, match=r"whole.*array_record"):
        load_split(whole)


@pytest.mark.parametrize(
    ("arrays", "changes", "fault"),
    [
        ({}, {"num_classes": 10}, "has 3 classes, the recipe 10: use --num-classes 3"),
        ({}, {"batch_size": 33}, "has 32 images to train on, a batch 33"),
        ({"y": None}, {}, "has no array 'y'"),
        ({"y": np.zeros(38)}, {}, "array 'y' of .* is float64"),
        ({"y": np.zeros(37, int)}, {}, r"of shape \(38,\)"),
        ({"y": -np.ones(38, int)}, {}, "has the label -1: number the classes"),
        ({}, {"source": "photos"}, "use npz:PATH, folder:PATH or tfds:NAME"),
        ({}, {"source": "npz:"}, "use npz:PATH, folder:PATH or tfds:NAME"),
        ({}, {"source": "folder:nowhere"}, "no folder 'nowhere'"),
        ({}, {"test_data": "npz:nowhere"}, "no file 'nowhere'"),
    ],
)
def test_unusable_data_is_explained(tmp_path, pixels, arrays, changes, fault):
    given = {"x": pixels, "y": np.arange(38) % 3, **arrays}
    path = tmp_path / "data.npz"
    np.savez(path, **{name: value for name, value in given.items() if value is not None})
    with pytest.raises(InputError, match=fault) as error:
        load_split(recipe(**{"source": f"npz:{path}", **changes}))
    assert "\n" not in str(error.value)
