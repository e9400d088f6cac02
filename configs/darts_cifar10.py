"""DARTS space, CIFAR-10, with the settings of the original code.

Paper: W. Chen, X. Gong, Z. Wang, "Neural Architecture Search on ImageNet in Four GPU Hours",
ICLR 2021, Table 2: 2.63 +- 0.064 % test error after training, 3.8 M parameters, 0.05 GPU days.
Command: `tenas search darts-cifar10 --data tfds:cifar10 --seed 0`
Evaluations: 196 + 112 operators until one is left on each edge, then 24 in six groups (the edges
into one node, of which two are kept); 3 repeats each.
Cost: 9 minutes on two CPU cores (AMD EPYC 9005) busy with other work; the original is projected to
take 4.7 hours on one.

Unlike in the original, the unpruned network is measured again after each group, also for the
kernel.
"""

from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig

CONFIG = SearchConfig(
    space="darts",
    image_size=32,
    padding=4,
    num_classes=10,
    repeats=3,
    prune_number=3,
    combination="sum",
    decimals=3,
    ntk=NTKConfig(batch_size=14, initializer="pytorch"),
    regions=RegionsConfig(batch_size=1000, batches=3, patch_size=3, initializer="pytorch"),
)
