from .nasbench import AccuracyTable as AccuracyTable
from .nasbench import load_table as load_table
from .results import ScoreTable as ScoreTable
from .results import SearchResult as SearchResult
