"""NAS-Bench-201 with the settings of the original code.

Paper: W. Chen, X. Gong, Z. Wang, "Neural Architecture Search on ImageNet in Four GPU Hours",
ICLR 2021, Table 1, mean of 4 searches: CIFAR-10 93.9 +- 0.47 %, CIFAR-100 71.24 +- 0.56 %,
ImageNet16-120 42.38 +- 0.46 % test accuracy, in 1558 s on a GTX 1080 Ti.
Command: `tenas search nas-bench-201 --data tfds:cifar10 --seed 0`
Evaluations: 24 + 18 + 12 = 54 operators, 3 repeats each.
Cost: 2.5 minutes on two CPU cores (AMD EPYC 9005); the original takes 72 minutes on one.

The original code passes an unknown name of an initializer, so its published results were obtained
with PyTorch's default initialization, which this preset uses too. Here each repeat draws weights
that all candidates of the round share; the original shares one draw of kernel weights over all
repeats of a round and draws region weights for each candidate.
"""

from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig

CONFIG = SearchConfig(
    space="nas-bench-201",
    image_size=32,
    padding=4,
    num_classes=10,
    repeats=3,
    prune_number=1,
    combination="sum",
    decimals=3,
    ntk=NTKConfig(batch_size=72, initializer="pytorch"),
    regions=RegionsConfig(batch_size=1000, batches=3, patch_size=3, initializer="pytorch"),
)
