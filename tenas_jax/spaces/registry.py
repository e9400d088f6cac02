"""Look up search spaces by name, and architectures by genotype or work directory."""

from pathlib import Path

from tenas_jax.architectures.space import Mask, SearchSpace
from tenas_jax.errors import InputError
from tenas_jax.host.files import read_json, require_local
from tenas_jax.resolve import resolve
from tenas_jax.spaces.darts import DARTS
from tenas_jax.spaces.nas_bench_201 import NAS_BENCH_201
from tenas_jax.spaces.transnas_bench_101 import TRANSNAS_BENCH_101

SPACES: dict[str, SearchSpace] = {
    space.name: space for space in (NAS_BENCH_201, DARTS, TRANSNAS_BENCH_101)
}


def get_space(name: str) -> SearchSpace:
    """Look up a search space by name.

    Args:
        name: a key of `SPACES`, or `module:object`.

    Raises:
        InputError: there is no such space.

    Example:
        >>> get_space("darts").cell_types
        ('normal', 'reduce')
    """
    return resolve(name, SPACES, SearchSpace, "search space")  # type: ignore[type-abstract]


def load_genotype(text: str) -> tuple[SearchSpace, Mask]:
    """Read an architecture given by the user.

    Args:
        text: a genotype in the notation of a built-in space, or the path of the work directory of
            a finished search.

    Returns:
        The search space, and the operators kept, of shape `space.shape`.

    Raises:
        InputError: the text is not a genotype, or the directory holds no result.

    Example:
        >>> space, mask = load_genotype("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
        >>> space.name, mask.shape
        ('nas-bench-201', (1, 6, 5))
    """
    recognizing = [space for space in SPACES.values() if space.recognizes(text)]
    if len(recognizing) > 1:
        names = " or of ".join(space.name for space in recognizing)
        raise InputError(f"these numbers may be of {names}: write the string of the benchmark")
    if recognizing:
        return recognizing[0], recognizing[0].from_string(text)
    require_local(text)
    path = Path(text) / "result.json"
    try:
        is_folder = bool(text.strip()) and path.parent.is_dir()
    except OSError:  # a name that is too long
        is_folder = False
    if not is_folder:
        given = repr(text) if len(text) <= 60 else f"the text of {len(text)} characters"
        raise InputError(
            f"{given} is neither a genotype nor a folder: write |op~0|+..., Genotype(...), "
            "64-41414-..., or name the work directory of a search"
        )
    if not path.exists():
        raise InputError(
            f"{text} holds no result.json: name the work directory of a finished search"
        )
    result = read_json(path, remedy="name the genotype instead")
    if not all(isinstance(result.get(name), str) for name in ("space", "genotype")):
        raise InputError(f"{path} names no space and genotype: name the result of a search")
    space = get_space(result["space"])
    return space, space.from_string(result["genotype"])
