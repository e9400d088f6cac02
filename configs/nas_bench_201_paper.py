"""NAS-Bench-201 with the settings the paper describes.

Paper: W. Chen, X. Gong, Z. Wang, "Neural Architecture Search on ImageNet in Four GPU Hours",
ICLR 2021, Table 1, mean of 4 searches: CIFAR-10 93.9 +- 0.47 %, CIFAR-100 71.24 +- 0.56 %,
ImageNet16-120 42.38 +- 0.46 % test accuracy, in 1558 s on a GTX 1080 Ti.
Command: `tenas search nas-bench-201-paper --data tfds:cifar10 --seed 0`
Evaluations: 24 + 18 + 12 = 54 operators, 3 repeats each.

Kernels of 32 images, 5000 samples for the linear regions, Kaiming normal initialization (the
original code intends fan-out for the kernel and fan-in for the regions), unrounded differences. As
in the code and unlike the paper, `none` is pruned from the start and differences are relative.
"""

from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig

CONFIG = SearchConfig(
    space="nas-bench-201",
    images=5000,
    image_size=32,
    padding=4,
    num_classes=10,
    repeats=3,
    prune_number=1,
    combination="sum",
    decimals=None,
    ntk=NTKConfig(batch_size=32, initializer="kaiming_normal_fan_out"),
    regions=RegionsConfig(
        batch_size=5000, batches=1, patch_size=3, initializer="kaiming_normal_fan_in"
    ),
)
