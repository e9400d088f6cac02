from .recipes import RECIPES as RECIPES
from .recipes import Recipe as Recipe
from .recipes import get_recipe as get_recipe
