"""DARTS space, ImageNet, with the settings the paper describes.

Paper: W. Chen, X. Gong, Z. Wang, "Neural Architecture Search on ImageNet in Four GPU Hours",
ICLR 2021, Table 3: 24.5 / 7.5 % top-1 / top-5 error after training, 5.4 M parameters, 0.17 GPU
days.
Command: `tenas search darts-imagenet-paper --data tfds:imagenet2012 --seed 0`, or with
`--data folder:PATH` for a tree of images.
Evaluations: 196 + 140 + 84 operators until one is left on each edge, then 24 in six groups (the
edges into one node, of which two are kept); 3 repeats each.

Images are resized to 32 x 32. Kernels of 32 images, 5000 samples for the linear regions, Kaiming
normal initialization (the original code intends fan-out for the kernel and fan-in for the regions),
unrounded differences. As in the code and unlike the paper, `none` is pruned from the start and
differences are relative. The unpruned network is measured again after each group.
"""

from tenas_jax.searching.config import NTKConfig, RegionsConfig, SearchConfig

CONFIG = SearchConfig(
    space="darts",
    images=5000,
    image_size=32,
    padding=4,
    num_classes=1000,
    repeats=3,
    prune_number=2,
    combination="sum",
    decimals=None,
    ntk=NTKConfig(batch_size=32, initializer="kaiming_normal_fan_out"),
    regions=RegionsConfig(
        batch_size=5000, batches=1, patch_size=3, initializer="kaiming_normal_fan_in"
    ),
)
