from .config import NTKConfig as NTKConfig
from .config import RegionsConfig as RegionsConfig
from .config import SearchConfig as SearchConfig
from .problem import Problem as Problem
from .problem import look_up as look_up
from .scorer import make_scorer as make_scorer
from .strategies import STRATEGIES as STRATEGIES
from .strategies import get_strategy as get_strategy
