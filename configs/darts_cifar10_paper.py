"""DARTS space, CIFAR-10, with the settings the paper describes.

Paper: W. Chen, X. Gong, Z. Wang, "Neural Architecture Search on ImageNet in Four GPU Hours",
ICLR 2021, Table 2: 2.63 +- 0.064 % test error after training, 3.8 M parameters, 0.05 GPU days.
Command: `tenas search darts-cifar10-paper --data tfds:cifar10 --seed 0`
Evaluations: 196 + 112 operators until one is left on each edge, then 24 in six groups (the edges
into one node, of which two are kept); 3 repeats each.

Kernels of 32 images, 5000 samples for the linear regions, Kaiming normal initialization (the
original code intends fan-out for the kernel and fan-in for the regions), unrounded differences. As
in the code and unlike the paper, `none` is pruned from the start and differences are relative. The
unpruned network is measured again after each group.
"""

from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig

CONFIG = SearchConfig(
    space="darts",
    images=5000,
    image_size=32,
    padding=4,
    num_classes=10,
    repeats=3,
    prune_number=3,
    combination="sum",
    decimals=None,
    ntk=NTKConfig(batch_size=32, initializer="kaiming_normal_fan_out"),
    regions=RegionsConfig(
        batch_size=5000, batches=1, patch_size=3, initializer="kaiming_normal_fan_in"
    ),
)
