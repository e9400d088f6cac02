"""Search, score and measure from Python; the commands call the same functions."""

import dataclasses
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree
from rich.console import Console

from tenas_jax.analysis.results import ScoreTable, SearchResult
from tenas_jax.architectures import enumeration
from tenas_jax.architectures.space import Masks, SearchSpace
from tenas_jax.configs import CUSTOM, PRESETS
from tenas_jax.data.images import ImageSet, image_set, load_images
from tenas_jax.errors import InputError
from tenas_jax.host.devices import start_jax, traced_for
from tenas_jax.host.files import require_local
from tenas_jax.host.locks import locked
from tenas_jax.host.processes import is_main
from tenas_jax.host.reproducibility import pinned
from tenas_jax.metrics.draw import Draw
from tenas_jax.metrics.model import ApplyFn, Select, is_weight
from tenas_jax.metrics.registry import METRICS, USUAL, Metric, distinct, get_metrics
from tenas_jax.numerics import highest_precision, require_numbers
from tenas_jax.resolve import resolve
from tenas_jax.searching import loop, scorer
from tenas_jax.searching.config import GROUPS, SearchConfig
from tenas_jax.searching.loop import Progress, search_settings
from tenas_jax.searching.problem import Problem, look_up
from tenas_jax.searching.progress import show_progress
from tenas_jax.searching.sizes import require_rows
from tenas_jax.searching.strategies import STRATEGIES
from tenas_jax.searching.workdir import shared_workdir
from tenas_jax.spaces.registry import SPACES

MetricNames = str | Sequence[str | Metric]
ShowProgress = bool | Callable[[Progress], None]


def search(
    space: str | SearchSpace | SearchConfig = "nas-bench-201",
    images: Any = None,
    *,
    image_count: int | None = None,
    seed: int | None = None,
    metrics: MetricNames | None = None,
    workdir: str | Path | None = None,
    resume: bool | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: ShowProgress = True,
    preset: str | None = None,
    **settings: Any,
) -> SearchResult:
    """Search for an architecture without training: TE-NAS, or another strategy.

    Args:
        space: a search space; its name or `module:object`; the name of a preset, which sets the
            defaults; or a configuration.
        images: uint8 array [n, size, size, channels]; a source such as `npz:PATH` (see
            `tenas_jax.data.images.load_images`); None: the source of the preset.
        image_count: number of images sampled from a source; None: as in the preset.
        seed: seed of the weights and of the choice of images.
        metrics: names separated by commas, where a minus reverses a metric (`regions,-snip`), or a
            sequence of names and `Metric` objects.
        workdir: folder of the search's files, from which an interrupted search can be resumed; it
            is locked during the search. None: files are kept only if the search is interrupted.
        resume: True: the folder must already hold this search; False: it must not; None: it may.
        devices: the devices, which share the measurements; None: all of JAX's.
        progress: whether to show a progress bar, or a function called with each `Progress`.
        preset: name of the settings in `result.json`; None: that of the preset, or `custom`.
        **settings: other fields of `SearchConfig`, such as `strategy="random"`, `budget=50` or
            `ntk={"batch_size": 32}`.

    Returns:
        The architecture, the record of its search, and plots.

    Raises:
        InputError: an argument cannot be used; the message says why and how to fix it.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
        >>> result = search(
        ...     "nas-bench-201", images, metrics="flops", strategy="random", budget=3, repeats=1,
        ...     ntk={"batch_size": 8}, progress=False)
        >>> result.evaluations
        3
    """
    name, problem, loaded = _prepare(space, images, image_count, seed, metrics, settings)
    with _folder(workdir) as folder, _progress(progress) as show:
        return search_problem(
            problem,
            loaded,
            workdir=folder,
            resume=resume,
            devices=start_jax() if devices is None else devices,
            progress=show,
            preset=preset or name,
        )


@pinned()
def search_problem(
    problem: Problem,
    images: ImageSet,
    *,
    workdir: Path,
    resume: bool | None,
    devices: Sequence[jax.Device],
    progress: Callable[[Progress], None],
    preset: str,
) -> SearchResult:
    """Like `search`, with all names looked up and the images read.

    Args:
        problem: what is searched.
        images: the images to measure on.
        workdir: folder of the search's files.
        resume: see `search`.
        devices: the devices, which share the measurements.
        progress: called with each `Progress`.
        preset: name of the settings in `result.json`.

    Raises:
        InputError: the work directory cannot be used, or something cannot be measured.
    """
    with traced_for(devices):
        # A user's strategy may also measure supernets.
        whole = problem.config.strategy in STRATEGIES.keys() - {"prune"}
        rows = scorer.make_scorer(problem, images, devices, single_path=whole)
        settings = search_settings(problem, preset, images.fingerprint)
        with shared_workdir(workdir, settings, resume=resume) as shared:
            content = loop.run_search(
                problem,
                rows,
                shared,
                preset=preset,
                data_fingerprint=images.fingerprint,
                device=describe_devices(devices),
                # A copy of process 0's files always holds this search.
                resume=resume if is_main() else True,
                progress=progress,
            )
    return SearchResult(content, problem.space, problem.config.num_classes)


def score(
    space: str | SearchSpace | SearchConfig = "nas-bench-201",
    architectures: int | str | Sequence[str] | Masks = 100,
    images: Any = None,
    *,
    image_count: int | None = None,
    seed: int | None = None,
    metrics: MetricNames | None = None,
    repeats: int = 1,
    workdir: str | Path | None = None,
    resume: bool | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: ShowProgress = True,
    preset: str | None = None,
    **settings: Any,
) -> ScoreTable:
    """Measure architectures by metrics; all share weights and images.

    Args:
        space: see `search`.
        architectures: texts in the notation of the space; masks [architecture, cell, edge, op]; a
            number of random architectures; or `all`.
        images: see `search`.
        image_count: see `search`.
        seed: seed of the weights, of the choice of images, and of random architectures.
        metrics: see `search`; `all`: all built-in metrics; None: those that share most of their
            computation.
        repeats: draws of weights and images over which values are averaged.
        workdir: see `search`.
        resume: see `search`.
        devices: see `search`.
        progress: see `search`.
        preset: see `search`.
        **settings: see `search`.

    Returns:
        The table.

    Raises:
        InputError: an argument cannot be used; the message says why and how to fix it.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
        >>> none = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
        >>> table = score("nas-bench-201", [none], images, metrics="parameters",
        ...               ntk={"batch_size": 8}, progress=False)
        >>> table.to_dict()["parameters"]
        [73306.0]
    """
    wanted = USUAL if metrics is None else metrics
    settings = {"repeats": repeats, **settings}
    name, problem, loaded = _prepare(space, images, image_count, seed, wanted, settings)
    masks = _masks(problem, architectures)
    with _folder(workdir) as folder, _progress(progress) as show:
        return score_problem(
            problem,
            masks,
            loaded,
            workdir=folder,
            resume=resume,
            devices=start_jax() if devices is None else devices,
            progress=show,
            preset=preset or name,
        )


@pinned()
def score_problem(
    problem: Problem,
    masks: Masks,
    images: ImageSet,
    *,
    workdir: Path,
    resume: bool | None,
    devices: Sequence[jax.Device],
    progress: Callable[[Progress], None],
    preset: str,
) -> ScoreTable:
    """Like `score`, with all names looked up and the images read.

    Args:
        problem: what is measured.
        masks: the architectures.
        images: the images to measure on.
        workdir: folder of the run's files.
        resume: see `search`.
        devices: the devices, which share the measurements.
        progress: called with each `Progress`.
        preset: name of the run's settings.

    Raises:
        InputError: the work directory cannot be used, or something cannot be measured.
    """
    with traced_for(devices):
        rows = scorer.make_scorer(problem, images, devices, single_path=True)
        settings = search_settings(problem, f"{preset} scores", images.fingerprint)
        with shared_workdir(workdir, settings, resume=resume) as shared:
            values = loop.run_scores(
                problem,
                masks,
                rows.parts(),
                shared,
                settings=settings,
                resume=resume if is_main() else True,
                progress=progress,
            )
    return ScoreTable(tuple(map(problem.space.to_string, masks)), problem.metrics, values)


@highest_precision()
def measure(
    apply_fn: ApplyFn,
    params: PyTree,
    x: Any,
    *,
    labels: Int[jax.Array | np.ndarray, "n"] | None = None,
    second_batch: Any = None,
    metrics: MetricNames = ("kappa", "regions"),
    select: Select = is_weight,
    sample_axis: int | None = None,
    smooth: str = "refuse",
    max_pooling: bool = False,
) -> dict[str, Any]:
    """Measure metrics of any model at its current weights.

    Args:
        apply_fn: maps `(params, x)` to the logits [n, classes].
        params: the weights, a pytree of floating-point arrays.
        x: the samples, in any form that `apply_fn` takes.
        labels: class of each sample, needed by metrics of a loss such as `snip`.
        second_batch: more samples, for your own metrics that need them.
        metrics: names separated by commas, or a sequence of names and `Metric` objects. Linear
            regions are counted on `x`; `synflow` needs a model without normalization.
        select: which parameters gradient metrics use; see `empirical_ntk`.
        sample_axis: for activation patterns; see `activation_patterns` for this and the following.
        smooth: how to treat smooth nonlinearities: `refuse`, `ignore`, or `sign`.
        max_pooling: whether pooling windows count.

    Returns:
        Each metric by name: numbers, or traced scalars under `jax.jit` and `jax.vmap`.

    Raises:
        InputError: a metric is unknown, lacks an argument, or cannot be measured.

    Example:
        >>> params = {"hidden": jax.numpy.eye(2), "kernel": jax.numpy.ones((2, 1))}
        >>> apply_fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["kernel"]
        >>> x = jax.numpy.array([[1.0, 0.0], [0.0, 2.0]])
        >>> measure(apply_fn, params, x, metrics="kappa,regions,parameters")
        {'kappa': 4.0, 'regions': 2, 'parameters': 6}
    """
    require_numbers(params=params, x=x)
    draw = Draw(
        apply_fn,
        params,
        x,
        labels=labels,
        second_batch=second_batch,
        select=select,
        sample_axis=sample_axis,
        smooth=smooth,
        max_pooling=max_pooling,
    )
    measured = {}
    for metric in _metrics(metrics):
        if metric.measure is None:
            raise InputError(f"metric {metric.name} is of search spaces, not of single models")
        value = metric.measure(draw)
        traced = isinstance(value, jax.core.Tracer)
        measured[metric.name] = value.item() if hasattr(value, "item") and not traced else value
    return measured


def configure(
    space: str | SearchSpace | SearchConfig,
    *,
    seed: int | None = None,
    metrics: MetricNames | None = None,
    **settings: Any,
) -> tuple[str, Problem]:
    """The name of the preset and the problem described by the arguments of `search`.

    Args:
        space: see `search`.
        seed: see `search`.
        metrics: see `search`.
        **settings: see `search`.

    Raises:
        InputError: an argument cannot be used.

    Example:
        >>> name, problem = configure("darts", seed=3, ntk={"batch_size": 14})
        >>> name, problem.config.seed, problem.config.ntk.batch_size
        ('custom', 3, 14)
    """
    name, config, given = _base(space)
    changes = dict(settings)
    if seed is not None:
        changes["seed"] = seed
    for group in GROUPS.keys() & changes.keys():
        if isinstance(changes[group], Mapping):
            changes[group] = _replaced(getattr(config, group), f"{group}.", changes[group])
    chosen = None
    if metrics is not None:
        chosen = _metrics(metrics)
        changes["metrics"] = (
            metrics
            if isinstance(metrics, str)
            else ",".join(each if isinstance(each, str) else _name(each) for each in metrics)
        )
    return name, look_up(_replaced(config, "", changes), given, chosen)


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """Devices in words, such as `2 x cpu`."""
    return f"{len(devices)} x {devices[0].device_kind}"


def _base(
    space: str | SearchSpace | SearchConfig,
) -> tuple[str, SearchConfig, SearchSpace | None]:
    """The name of a preset, its configuration, and the space if it was given as an object."""
    if isinstance(space, str) and space in PRESETS:
        preset: SearchConfig = PRESETS[space].CONFIG
        return space, preset, None
    if isinstance(space, str):
        found: Any = resolve(space, SPACES, object, "search space or preset")
        if isinstance(found, SearchConfig):
            return space, found, None
        return CUSTOM, SearchConfig(space=space), None
    if isinstance(space, SearchConfig):
        return CUSTOM, space, None
    if not isinstance(space, SearchSpace):
        raise InputError(
            f"the search space is a {type(space).__name__}: give a SearchSpace, its name, or a "
            "preset"
        )
    return CUSTOM, SearchConfig(space=space.name), space


def _prepare(
    space: str | SearchSpace | SearchConfig,
    images: Any,
    image_count: int | None,
    seed: int | None,
    metrics: MetricNames | None,
    settings: dict[str, Any],
) -> tuple[str, Problem, ImageSet]:
    if isinstance(images, np.ndarray | jax.Array):
        images = image_set(np.asarray(images), "array")
    if isinstance(images, ImageSet):
        count, size, _, channels = images.images.shape
        read = {"data": images.name, "images": count, "image_size": size}
        settings = {**settings, **read, "image_channels": channels}
    else:
        read = {"data": images, "images": image_count}
        given = {name: value for name, value in read.items() if value is not None}
        settings = {**settings, **given}
    name, problem = configure(space, seed=seed, metrics=metrics, **settings)
    if not isinstance(images, ImageSet):
        images = read_images(problem)
    return name, problem, images


def read_images(problem: Problem, progress: Callable[[int, int], None] | None = None) -> ImageSet:
    """Read the images of a problem.

    Args:
        problem: the problem, which names their source.
        progress: called with (images read, images to read).

    Raises:
        InputError: they cannot be read.
    """
    config = problem.config
    return load_images(
        config.data,
        image_size=config.image_size,
        channels=config.image_channels,
        limit=config.images,
        minimum=config.ntk.batch_size,
        seed=config.seed,
        data_dir=config.data_dir,
        labels=config.labels == "own",
        progress=progress,
    )


def _metrics(metrics: MetricNames) -> tuple[Metric, ...]:
    if isinstance(metrics, str):
        return get_metrics(metrics)
    found: list[Metric] = []
    for each in metrics:
        if not isinstance(each, str | Metric):
            raise InputError(f"{each!r} is not a metric: give a name or a Metric")
        found += [each] if isinstance(each, Metric) else get_metrics(each)
    return distinct(found)


def _name(metric: Metric) -> str:
    """The name of a metric object in the configuration; reversed built-in ones have a minus."""
    built_in = METRICS.get(metric.name)
    return f"-{metric.name}" if built_in and metric == -built_in else metric.name


def masks_of(space: SearchSpace, texts: Sequence[str]) -> Masks:
    """The masks of distinct architectures.

    Args:
        space: the search space.
        texts: architectures in its notation.

    Raises:
        InputError: there are none, one is not of the space, or one is repeated.
    """
    if not len(texts):
        raise InputError("no architecture to score: give at least one")
    return _distinct(np.stack([space.from_string(text) for text in texts]), space)


def _distinct(masks: Masks, space: SearchSpace) -> Masks:
    texts = [space.to_string(mask) for mask in masks]
    repeated = [text for text, count in Counter(texts).items() if count > 1]
    if repeated:
        raise InputError(f"{repeated[0]} is given twice: give every architecture once")
    return masks


def _masks(problem: Problem, architectures: int | str | Sequence[str] | Masks) -> Masks:
    space = problem.space
    if isinstance(architectures, str) and architectures == "all":
        return enumeration.enumerate_all(space)
    if isinstance(architectures, int):
        if architectures < 1:
            raise InputError(f"{architectures} architectures: ask for at least 1")
        require_rows(architectures, int(problem.config.repeats))
        return enumeration.sample(space, architectures, np.random.default_rng(problem.config.seed))
    if isinstance(architectures, np.ndarray):
        return _distinct(architectures, space)
    return masks_of(space, [architectures] if isinstance(architectures, str) else architectures)


def _replaced(config: Any, prefix: str, changes: Mapping[str, Any]) -> Any:
    unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(config)})
    if unknown:
        known = ", ".join(prefix + field.name for field in dataclasses.fields(config))
        raise InputError(f"unknown setting {prefix}{unknown[0]}: choose from {known}")
    return dataclasses.replace(config, **changes)


@contextmanager
def _folder(workdir: str | Path | None) -> Iterator[Path]:
    """The work directory, or a temporary one that is kept only if the search is interrupted."""
    if workdir is not None:
        require_local(workdir)
        with locked(Path(workdir), flag="workdir"):
            yield Path(workdir)
        return
    folder = Path(tempfile.mkdtemp(prefix="tenas-"))
    try:
        yield folder
    except (KeyboardInterrupt, SystemExit) as interruption:
        interruption.add_note(f"the measurements are kept: continue with workdir={str(folder)!r}")
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _progress(progress: ShowProgress) -> Any:
    if callable(progress):
        return nullcontext(progress)
    return show_progress(Console(stderr=True)) if progress else nullcontext(lambda _: None)
