"""DARTS space, size first, then metrics on a larger proxy network.

Method: the 100 architectures with the most FLOPs among 10,000 random ones are ranked by linear
regions, NASWOT and SWAP (expressivity) and by low SNIP (trainability), and measured again until the
first place is decided; no training, no accuracy, random labels. The proxy network has 8 channels
and 5 cells, because these metrics say almost nothing on TE-NAS's one channel and two cells.
Command: `tenas search darts-best --data tfds:cifar10 --seed 0`
Evaluations: 100 architectures, 2 to 6 repeats each.
Cost: 6 minutes and 2.5 GB on two CPU cores.

Selected on 362 architectures of NAS-Bench-301 (CIFAR-10, accuracies of its surrogate; NASLib's
sample): Kendall's tau is 0.46 with one repeat, against 0.19 for kappa + regions on the proxy
network of darts-cifar10 and 0.33 for NASWOT and parameters alone. Candidates were sums of ranks and
of their logarithms by FLOPs, parameters, regions, synflow, NASWOT, SWAP, gradient norm, SNIP,
Zen-score, expressivity and progressivity of AZ-NAS and MeCo, with either sign; the best has 0.48.
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
