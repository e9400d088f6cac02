"""The discrete networks in PyTorch, written from their papers, on weights of the Flax modules."""

import numpy as np
import torch
import torch.nn.functional as F


class PyTorchNetwork:
    """Functions of images [n, c, h, w] with the weights of a Flax network, found by module name."""

    def __init__(self, variables, train):
        self.params, self.statistics = variables["params"], variables["batch_stats"]
        self.train = train

    def weight(self, *path):
        value = self.params
        for name in path:
            value = value[name]
        return torch.tensor(np.asarray(value))

    def conv(self, x, path, kernel="kernel", stride=1, padding=0, dilation=1, groups=1):
        weight = self.weight(*path, kernel)
        weight = weight.reshape(weight.shape[-4:]).permute(3, 2, 0, 1)  # HWIO to OIHW
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    def norm(self, x, path):
        statistics = self.statistics
        for name in (*path, "statistics"):
            statistics = statistics[name]
        mean, var = (torch.tensor(np.asarray(statistics[name])) for name in ("mean", "var"))
        scale, bias = (self.weight(*path, name).flatten() for name in ("scale", "bias"))
        return F.batch_norm(x, mean, var, scale, bias, self.train, 0.1, 1e-5)

    def relu_conv_norm(self, x, path, size, stride):
        x = self.conv(F.relu(x), (*path, "conv"), stride=stride, padding=size // 2)
        return self.norm(x, (*path, "conv"))

    def factorized_reduction(self, x, path):
        x = F.relu(x)
        halves = [
            self.norm(self.conv(y, (*path, name), stride=2), (*path, name))
            for name, y in (("half_0", x), ("half_1", x[:, :, 1:, 1:]))
        ]
        return torch.cat(halves, 1)

    def separable(self, x, path, size, stride, dilation):
        channels = x.shape[1]
        x = self.conv(
            F.relu(x),
            path,
            "depthwise",
            stride=stride,
            padding=dilation * (size - 1) // 2,
            dilation=dilation,
            groups=channels,
        )
        return self.norm(self.conv(x, path, "pointwise"), path)

    def operator(self, name, x, path, stride):
        size = int(name[-1]) if name[-1].isdigit() else 1
        if name == "none":
            return 0 * x
        if name == "skip_connect":
            inner = (*path, "FactorizedReduction_0")
            return x if stride == 1 else self.factorized_reduction(x, inner)
        if name.startswith("nor_conv"):
            return self.relu_conv_norm(x, path, size, stride)
        if name.startswith("sep_conv"):
            x = self.separable(x, (*path, "conv_0"), size, stride, 1)
            return self.separable(x, (*path, "conv_1"), size, 1, 1)
        if name.startswith("dil_conv"):
            return self.separable(x, (*path, "conv_0"), size, stride, 2)
        if name == "avg_pool_3x3":
            return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, stride, 1)

    def nodes(self, inputs, edges, path, stride):
        """Values of all nodes; edges are (operator, source, target) by ascending target."""
        nodes = list(inputs)
        for target in range(len(inputs), 1 + edges[-1][2]):
            nodes.append(
                sum(
                    self.operator(
                        op,
                        nodes[source],
                        (*path, f"{op}_{source}_{target}"),
                        stride if source < len(inputs) else 1,
                    )
                    for op, source, into in edges
                    if into == target
                )
            )
        return nodes

    def classify(self, x, path=()):
        weight, bias = (self.weight(*path, "classifier", name) for name in ("kernel", "bias"))
        return x.mean((2, 3)) @ weight + bias

    def nas_bench_201(self, x, edges, cells):
        x = self.norm(self.conv(x, ("stem",), padding=1), ("stem",))
        for stage in range(3):
            if stage:
                block = f"block_{stage}"
                y = self.relu_conv_norm(x, (block, "conv_a"), 3, 2)
                y = self.relu_conv_norm(y, (block, "conv_b"), 3, 1)
                x = self.conv(F.avg_pool2d(x, 2), (block, "shortcut")) + y
            for i in range(cells):
                x = self.nodes([x], edges, (f"cell_{stage * cells + i}",), 1)[-1]
        return self.classify(F.relu(self.norm(x, ("norm",))))

    def auxiliary(self, x, imagenet):
        x = F.avg_pool2d(F.relu(x), 5, 2 if imagenet else 3)
        x = F.relu(self.norm(self.conv(x, ("auxiliary", "conv_a")), ("auxiliary", "conv_a")))
        x = self.conv(x, ("auxiliary", "conv_b"))
        assert x.shape[1:] == (768, 1, 1)
        x = x if imagenet else self.norm(x, ("auxiliary", "norm"))
        return self.classify(F.relu(x), ("auxiliary",))

    def darts(self, x, edges, cells, imagenet):
        """Logits, and in training those of the auxiliary head; edges by type of cell."""
        if imagenet:
            x = self.norm(self.conv(x, ("stem_a",), stride=2, padding=1), ("stem_a",))
            x = self.norm(self.conv(F.relu(x), ("stem_b",), stride=2, padding=1), ("stem_b",))
            older, newer = x, self.relu_conv_norm(x, ("stem_c",), 3, 2)
        else:
            older = newer = self.norm(self.conv(x, ("stem",), padding=1), ("stem",))
        logits, after_reduction = None, imagenet
        for i in range(cells):
            reduction = i == cells // 3 or i == 2 * cells // 3
            kind = "reduce" if reduction else "normal"
            path = (f"{kind}_{i}",)
            if after_reduction:
                first = self.factorized_reduction(older, (*path, "input_0"))
            else:
                first = self.relu_conv_norm(older, (*path, "input_0"), 1, 1)
            second = self.relu_conv_norm(newer, (*path, "input_1"), 1, 1)
            nodes = self.nodes(
                [first, second], edges[kind], (*path, "nodes"), 2 if reduction else 1
            )
            older, newer, after_reduction = newer, torch.cat(nodes[2:], 1), reduction
            if i == 2 * cells // 3 and self.train:
                logits = self.auxiliary(newer, imagenet)
        return self.classify(newer), logits
