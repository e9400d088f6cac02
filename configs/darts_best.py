"""The DARTS space by size, then by what is measured on a larger proxy network.

Method: of 10,000 random architectures the 100 with the most FLOPs, ranked by linear regions, NASWOT
and SWAP (expressivity) and by little SNIP (trainability), measured again until the first is
decided; no training, no accuracy, random labels. The proxy network of the kernel has one channel
and two cells, on which these say almost nothing; this one has 8 channels and 5 cells.
Command: `tenas search darts-best --data tfds:cifar10 --seed 0`
Evaluations: 100 architectures, 2 to 6 repeats each.
Cost: 6 minutes and 2.5 GB on two CPU cores.

Chosen by 362 architectures of NAS-Bench-301 (CIFAR-10, accuracies of its surrogate; NASLib's
sample): Kendall's tau 0.46 with one repeat, where kappa + regions on the proxy network of
darts-cifar10 have 0.19, NASWOT and parameters alone 0.33. Tried: sums of ranks and of their
logarithms by FLOPs, parameters, regions, synflow, NASWOT, SWAP, gradient norm, SNIP, Zen-score,
expressivity and progressivity of AZ-NAS and MeCo, with either sign; the best has 0.48.
"""

from tenas_jax.searching.config import AutoRepeatsConfig, NTKConfig, SearchConfig

CONFIG = SearchConfig(
    space="darts",
    metrics="regions,naswot,swap,-snip",
    strategy="shortlist",
    budget=100,
    repeats="auto",
    auto_repeats=AutoRepeatsConfig(minimum=2, maximum=6),
    ntk=NTKConfig(batch_size=14, channels=8, cells=5),
)
