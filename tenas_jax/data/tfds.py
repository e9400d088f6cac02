"""TensorFlow Datasets, imported only when one of its data sets is used."""

from typing import Any

from tenas_jax.errors import InputError, first_line


def tfds_builder(name: str, data_dir: str | None, *, at_random: bool = False) -> Any:
    """Prepare a data set for reading.

    Args:
        name: name in the catalog, optionally with configuration and version.
        data_dir: where TFDS keeps its data; its own default if `None`.
        at_random: whether records are read in random order, which needs another file format.

    Returns:
        A `tfds.core.DatasetBuilder`.

    Raises:
        InputError: TFDS is not installed, or cannot find or prepare the data set.
    """
    try:
        import tensorflow as tf  # type: ignore[import-untyped]
        import tensorflow_datasets as tfds  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            f"source 'tfds:{name}' needs TensorFlow Datasets ({first_line(error)}): "
            "pip install tensorflow tensorflow-datasets"
        ) from error
    tf.config.set_visible_devices([], "GPU")  # TensorFlow would take the memory JAX needs
    file_format = {"file_format": "array_record"} if at_random else {}
    try:
        builder = tfds.builder(name, data_dir=data_dir, **file_format)
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(f"TFDS has no data set {name!r}: use a name of its catalog") from error
    except (
        AssertionError,  # an unknown version; a data set that needs a manual download
        ImportError,
        OSError,
        RuntimeError,  # wraps errors of a remote data_dir
        ValueError,  # an unknown configuration
        tfds.download.DownloadError,
    ) as error:
        raise InputError(
            f"TFDS cannot prepare {name!r}: {first_line(error)} "
            "(prepare it where there is a network and give its folder: --data-dir, or data_dir=)"
        ) from error
    return builder
