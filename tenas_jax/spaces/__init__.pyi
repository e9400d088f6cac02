from .choice_space import ChoiceSpace as ChoiceSpace
from .darts import DARTS as DARTS
from .nas_bench_201 import NAS_BENCH_201 as NAS_BENCH_201
from .registry import SPACES as SPACES
from .registry import get_space as get_space
from .registry import load_genotype as load_genotype
from .transnas_bench_101 import TRANSNAS_BENCH_101 as TRANSNAS_BENCH_101
