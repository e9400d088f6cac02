"""DARTS space, ImageNet, with the settings of the original code.

Paper: W. Chen, X. Gong, Z. Wang, "Neural Architecture Search on ImageNet in Four GPU Hours",
ICLR 2021, Table 3: 24.5 / 7.5 % top-1 / top-5 error after training, 5.4 M parameters, 0.17 GPU
days.
Command: `tenas search darts-imagenet --data tfds:imagenet2012 --seed 0`, or with
`--data folder:PATH` for a tree of images.
Evaluations: 196 + 140 + 84 operators until one is left on each edge, then 24 in six groups (the
edges into one node, of which two are kept); 3 repeats each.
Cost: 8 minutes on two CPU cores (AMD EPYC 9005) with a folder of images; the original is projected
to take 10.5 hours on one.

Images are resized to 32 x 32. Unlike in the original, the unpruned network is measured again after
each group, also for the kernel.
"""

from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig

CONFIG = SearchConfig(
    space="darts",
    image_size=32,
    padding=4,
    num_classes=1000,
    repeats=3,
    prune_number=2,
    combination="sum",
    decimals=3,
    ntk=NTKConfig(batch_size=24, initializer="pytorch"),
    regions=RegionsConfig(batch_size=1000, batches=3, patch_size=3, initializer="pytorch"),
)
