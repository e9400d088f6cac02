"""Image sources, against files written here."""

import os
import socket

import numpy as np
import pytest
from PIL import Image

from tenas_jax.data.images import ImageSet, load_images
from tenas_jax.errors import InputError


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def load(source, image_size=8, limit=100, seed=0, **kwargs):
    return load_images(str(source), image_size=image_size, limit=limit, seed=seed, **kwargs)


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "images.npz", **arrays)
        return f"npz:{tmp_path / 'images.npz'}"

    return write


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("this source must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


# npz


def test_npz_images_of_the_right_size_are_kept_exactly(npz):
    x = random_images(20, 8, 8, 3)
    source = npz(x=x, y=np.arange(20))
    result = load(source)
    assert np.array_equal(result.images, x)
    assert result.images.dtype == np.uint8
    assert result.name == source
    np.testing.assert_allclose(result.mean, (x / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(result.std, (x / 255).std(axis=(0, 1, 2)), rtol=1e-12)


def test_a_sample_is_in_order_without_repeats_and_decided_by_the_seed(npz):
    x = np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    source = npz(x=x)
    chosen = load(source, limit=20).images[:, 0, 0, 0].tolist()
    assert len(chosen) == 20
    assert chosen == sorted(set(chosen))
    assert chosen != list(range(20))
    assert load(source, limit=20).images[:, 0, 0, 0].tolist() == chosen
    assert load(source, limit=20, seed=1).images[:, 0, 0, 0].tolist() != chosen


def test_resizing_averages_instead_of_picking_pixels(npz):
    x = np.zeros((2, 32, 48, 3), np.uint8)
    x[0, :, ::2], x[1, :16] = 254, 254  # thin stripes; upper half bright
    stripes, halves = load(npz(x=x)).images
    assert stripes.shape == (8, 8, 3)
    assert np.abs(stripes[:, 1:-1].astype(int) - 127).max() <= 8
    assert halves[:3].min() > 250
    assert halves[-3:].max() < 5


def test_labels_are_those_of_the_images_that_are_sampled(npz):
    x = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((8, 8, 3), np.uint8)
    y = np.arange(60)[::-1] % 7
    loaded = load(npz(x=x, y=y), limit=20, labels=True)
    assert loaded.labels.tolist() == y[loaded.images[:, 0, 0, 0]].tolist()
    unlabeled = load(npz(x=x, y=y), limit=20)
    assert unlabeled.labels is None
    np.testing.assert_array_equal(loaded.images, unlabeled.images)
    others = load(npz(x=x, y=(y + 1) % 7), limit=20, labels=True)
    assert len({each.fingerprint for each in (loaded, unlabeled, others)}) == 3


def test_labels_of_a_folder_are_its_folders_by_name(tmp_path):
    for i, name in enumerate(("b/2.png", "a/1.png", "b/sub/3.png", "c/0.png")):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_images(8, 8, 3, seed=i)).save(file)
    assert load(f"folder:{tmp_path}", labels=True).labels.tolist() == [0, 1, 1, 2]
    Image.fromarray(random_images(8, 8, 3)).save(tmp_path / "outside.png")
    assert load(f"folder:{tmp_path}").labels is None
    with pytest.raises(InputError, match=r"outside.png' is in no folder of a class: move it"):
        load(f"folder:{tmp_path}", labels=True)


def test_data_without_labels_is_explained(npz):
    x = random_images(5, 8, 8, 3)
    with pytest.raises(InputError, match="source 'photos' has no labels: use labels random"):
        load("photos", labels=True)
    with pytest.raises(InputError, match="has no array 'y'"):
        load(npz(x=x), labels=True)
    with pytest.raises(InputError, match=r"'y' .* of shape \(3,\): use integers .* shape \(5,\)"):
        load(npz(x=x, y=np.arange(3)), labels=True)
    with pytest.raises(InputError, match=r"labels of noise have shape \(4,\), from 0: give 5"):
        ImageSet(x, (0.5,) * 3, (0.5,) * 3, "noise", np.arange(4))


def test_progress_counts_to_the_number_of_images(npz):
    calls = []
    load(npz(x=random_images(5, 8, 8, 3)), limit=3, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": np.zeros((2, 8, 8, 3), np.uint8), "y": np.zeros(2)},
            r"\(its arrays: images, y",
        ),
        (
            {"x": np.zeros((2, 8, 8, 3), np.float32)},
            r"is float32 of shape \(2, 8, 8, 3\): use uint8",
        ),
        ({"x": np.zeros((2, 8, 8), np.uint8)}, r"of shape \(2, 8, 8\): use uint8 of shape \(n, h"),
        ({"x": np.zeros((2, 3, 8, 8), np.uint8)}, r"of shape \(2, 3, 8, 8\): use uint8 of shape"),
        ({"x": np.array([{}])}, r"is object of shape \(1,\): use uint8"),
        ({"x": np.zeros((2, 8, 8, 3), np.uint8)}, "same value in all of channel 0"),
        ({"x": random_images(4, 8, 8, 3)}, r"gives 4 images \(limit 100\), but a batch needs 5"),
    ],
)
def test_unusable_npz_files_are_explained(npz, arrays, message):
    with pytest.raises(InputError, match=message) as error:
        load(npz(**arrays), minimum=5 if len(arrays.get("x", "")) == 4 else 1)
    assert "\n" not in str(error.value)


def test_damaged_npz_files_are_explained(npz, tmp_path):
    npz(x=random_images(50, 8, 8, 3))
    content = bytearray((tmp_path / "images.npz").read_bytes())
    content[4000:4100] = bytes(100)
    for damaged, message in ((content, "cannot read array 'x'"), (content[:999], "not an .npz")):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            load(f"npz:{tmp_path / 'damaged.npz'}")


def test_an_npy_file_is_not_an_npz_file(tmp_path):
    np.save(tmp_path / "x.npy", random_images(4, 8, 8, 3))
    with pytest.raises(InputError, match=r"is not an \.npz file"):
        load(f"npz:{tmp_path / 'x.npy'}")


def test_a_limit_below_the_minimum_is_explained(npz):
    with pytest.raises(InputError, match=r"gives 3 images \(limit 3\), but a batch needs 4"):
        load(npz(x=random_images(9, 8, 8, 3)), limit=3, minimum=4)


# folder


def test_folder_is_read_recursively_in_order_and_as_rgb(tmp_path):
    pixels = random_images(8, 8, 4)
    gray, palette = Image.fromarray(pixels[..., 0]), Image.new("P", (8, 8))
    palette.putpalette([10, 20, 30] * 256)
    palette.info["transparency"] = bytes([0, 255])
    (tmp_path / "b" / "c").mkdir(parents=True)
    gray.save(tmp_path / "b" / "c" / "gray.png")
    Image.fromarray(pixels).save(tmp_path / "b" / "alpha.PNG")
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 255]))
    Image.fromarray(pixels[..., :3]).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(tmp_path / "d.jpeg")
    (tmp_path / "readme.txt").write_text("not an image")
    rgb = pixels[..., :3]
    expected = [
        rgb,  # a.webp
        rgb,  # b/alpha.PNG
        np.repeat(pixels[..., :1], 3, axis=-1),  # b/c/gray.png
        np.full((8, 8, 3), 77),  # d.jpeg
        np.broadcast_to([10, 20, 30], (8, 8, 3)),  # palette.png
    ]
    assert np.array_equal(load(f"folder:{tmp_path}").images, expected)
    chosen = load(f"folder:{tmp_path}", limit=2, seed=3).images
    assert len(chosen) == 2
    assert all(any((c == e).all() for e in expected) for c in chosen)


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_an_unreadable_image_is_named(tmp_path, damage):
    Image.fromarray(random_images(64, 64, 3)).save(tmp_path / "bad.png")
    content = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(b"hello" if damage == "text" else content[:5000])
    with pytest.raises(InputError, match=r"cannot read image '.*bad\.png': .+") as error:
        load(f"folder:{tmp_path}")
    assert "\n" not in str(error.value)


def test_a_16_bit_image_is_refused(tmp_path):
    Image.fromarray(random_images(8, 8).astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits per channel"):
        load(f"folder:{tmp_path}")


def test_an_empty_folder_is_explained(tmp_path):
    with pytest.raises(
        InputError, match=r"has no images \(\.jpeg, \.jpg, \.png, \.webp\): name a fo"
    ):
        load(f"folder:{tmp_path}")


# photos


@pytest.mark.usefixtures("no_network")
def test_photos_are_distinct_crops_with_contrast():
    result = load("photos", image_size=32, limit=500)
    assert result.images.shape == (500, 32, 32, 3)
    assert len(np.unique(result.images.reshape(500, -1), axis=0)) == 500
    assert result.images.std(axis=(1, 2)).max(axis=-1).min() >= 20
    assert load("photos", image_size=32, limit=500).fingerprint == result.fingerprint
    assert load("photos", image_size=32, limit=500, seed=1).fingerprint != result.fingerprint
    assert load("photos", image_size=200, limit=7).images.shape == (7, 200, 200, 3)


def test_photos_that_cannot_be_distinct_end_with_an_error():
    with pytest.raises(InputError, match="no more than 0 distinct crops of 1 pixels"):
        load("photos", image_size=1)


# tfds


@pytest.fixture(scope="module")
def tfds_data(tmp_path_factory):
    """Prepared data sets: `tiny` of 20 images whose value is their number, `tiny_text`."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        feature, kind = "image", features.Image(shape=(8, 8, 1))

        def _info(self):
            kinds = features.FeaturesDict({self.feature: self.kind})
            return tfds.core.DatasetInfo(builder=self, features=kinds)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            return ((i, {self.feature: np.full((8, 8, 1), i, np.uint8)}) for i in range(20))

    class TinyText(Tiny):
        feature, kind = "text", features.Text()

        def _generate_examples(self):
            return ((i, {self.feature: str(i)}) for i in range(20))

    class TinyLabeled(Tiny):
        def _info(self):
            kinds = {"image": self.kind, "label": features.ClassLabel(names=["a", "b", "c"])}
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(kinds))

        def _generate_examples(self):
            image = np.ones((8, 8, 1), np.uint8)
            return ((i, {"image": i * image, "label": i % 3}) for i in range(20))

    data_dir = tmp_path_factory.mktemp("tfds")
    for builder in (Tiny, TinyText, TinyLabeled):
        builder(data_dir=data_dir).download_and_prepare()
    return str(data_dir)


def test_tfds_takes_consecutive_records_of_the_train_split(tfds_data):
    every = load("tfds:tiny", data_dir=tfds_data).images[:, 0, 0]
    assert sorted(every[:, 0]) == list(range(20))
    assert (every == every[:, :1]).all()
    order = every[:, 0].tolist()
    starts = set()
    for seed in range(5):
        part = load("tfds:tiny", limit=6, seed=seed, data_dir=tfds_data).images[:, 0, 0, 0].tolist()
        start = order.index(part[0])
        assert part == order[start : start + 6]
        starts.add(start)
    assert len(starts) > 1


def test_labels_of_tfds_are_those_of_the_images(tfds_data):
    loaded = load("tfds:tiny_labeled", limit=9, data_dir=tfds_data, labels=True)
    assert loaded.labels.tolist() == (loaded.images[:, 0, 0, 0] % 3).tolist()
    assert load("tfds:tiny_labeled", limit=9, data_dir=tfds_data).labels is None
    with pytest.raises(InputError, match=r"no classes 'label' \(its features: image\): use labels"):
        load("tfds:tiny", data_dir=tfds_data, labels=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_text", r"no images 'image' \(its features: text\)"),
        ("no_such_data_set", "TFDS has no data set 'no_such_data_set'"),
        ("tiny:9.9.9", "TFDS cannot prepare 'tiny:9.9.9': "),
        ("imagenet2012", r"'imagenet2012': .* and give its folder: --data-dir, or data_dir=\)"),
    ],
)
def test_unusable_tfds_data_sets_are_explained(tfds_data, name, message):
    with pytest.raises(InputError, match=message) as error:
        load(f"tfds:{name}", data_dir=tfds_data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar10", 125.3 / 255, 63.0 / 255),
        ("cifar10:3.0.2", 125.3 / 255, 63.0 / 255),
        ("cifar100", 129.3 / 255, 68.2 / 255),
        ("imagenet_resized/16x16", 122.68 / 255, 63.22 / 255),
        ("imagenet_resized/32x32", 0.485, 0.229),
        ("imagenet2012", 0.485, 0.229),
        ("cifar10_corrupted", None, None),
    ],
)
def test_known_data_sets_are_normalized_as_in_the_original(monkeypatch, name, mean, std):
    x = random_images(4, 8, 8, 3)
    monkeypatch.setattr(
        "tenas_jax.data.images._tfds_images", lambda *_: (4, ((image, None) for image in x))
    )
    result = load(f"tfds:{name}")
    if mean is None:
        mean, std = x[..., 0].mean() / 255, x[..., 0].std() / 255
    assert (result.mean[0], result.std[0]) == pytest.approx((mean, std), rel=1e-9)


# any source


@pytest.mark.parametrize("source", ["", "photo", "photos:x", "npz", "npz:", "hdf5:x", "cifar10"])
def test_unknown_sources_list_the_forms(source):
    with pytest.raises(InputError, match=r"use photos, npz:PATH, folder:PATH or tfds:NAME"):
        load(source)


def test_missing_paths_are_named(tmp_path):
    missing = os.path.join(tmp_path, "missing")
    with pytest.raises(InputError, match=r"no file '.*missing'"):
        load(f"npz:{missing}")
    with pytest.raises(InputError, match=r"no folder '.*missing'"):
        load(f"folder:{missing}")


def test_fingerprint_depends_on_pixels_and_shape_alone():
    x = random_images(3, 8, 8, 3)
    changed = x.copy()
    changed[2, 7, 7, 2] ^= 1

    def fingerprint(images, name="a"):
        return ImageSet(images, (0.0,) * 3, (1.0,) * 3, name).fingerprint

    assert fingerprint(x) == fingerprint(x.copy(), name="b")
    assert fingerprint(x[:, :, ::-1]) == fingerprint(x[:, :, ::-1].copy())
    different = [x, changed, x[::-1], x[:, :, ::-1], x[:2], x.reshape(12, 4, 4, 3)]
    assert len({fingerprint(images) for images in different}) == len(different)
    assert len(fingerprint(x)) == 64


def test_a_remote_folder_of_tfds_that_cannot_be_reached_is_one_line(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def unreachable(*_, **__):
        raise RuntimeError("FailedPreconditionError: could not resolve host\n\twhen reading")

    monkeypatch.setattr(tfds, "builder", unreachable)
    with pytest.raises(InputError, match=r"TFDS cannot prepare 'tiny': Failed.* host \(prepare it"):
        load("tfds:tiny", data_dir="gs://bucket/data")
