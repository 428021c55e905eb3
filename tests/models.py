"""Small models for tests, each a function that returns `(model, example_inputs)`; MODELS lists them all.

Weights are random but seeded, BatchNorm statistics and affine parameters far from their start values, so that a pass
that forgets one of them is seen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

Example = tuple[nn.Module, tuple[Tensor, ...]]


def seeded(build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Example:
    """A model in eval mode and inputs of the given shapes, the same on every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                _randomize(module)
        return model.eval(), tuple(torch.randn(shape) for shape in shapes)


def inputs_like(examples: tuple[Tensor, ...], batch: int, random: torch.Generator) -> tuple[Tensor, ...]:
    """Other inputs of the same types: normal numbers, or whole ones up to the largest."""

    def draw(example: Tensor) -> Tensor:
        shape = (batch, *example.shape[1:])
        if example.is_floating_point():
            return torch.randn(shape, generator=random)
        return torch.randint(0, int(example.max()) + 1, shape, generator=random)

    return tuple(map(draw, examples))


def _randomize(norm: nn.modules.batchnorm._BatchNorm) -> None:
    for tensor, low, high in ((norm.running_mean, -0.5, 0.5), (norm.running_var, 0.5, 2.0)):
        if tensor is not None:
            nn.init.uniform_(tensor, low, high)
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.3)


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(cout)]


def mlp() -> Example:
    return seeded(
        lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)),
        (2, 12),
    )


def conv_net() -> Example:
    """The simplest one with everything a pass needs: two convolutions with BatchNorm, a linear layer."""
    layers = [
        *conv_bn(3, 8),
        nn.ReLU(),
        *conv_bn(8, 8, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return seeded(lambda: nn.Sequential(*layers, nn.Linear(8, 5)), (2, 3, 8, 8))


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = cin * expand
        self.use_residual = stride == 1 and cin == cout
        self.conv = nn.Sequential(
            *conv_bn(cin, hidden, 1),
            nn.ReLU6(inplace=True),
            *conv_bn(hidden, hidden, 3, stride, hidden),
            nn.ReLU6(inplace=True),
            *conv_bn(hidden, cout, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_residual else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 12, 2, 3), InvertedResidual(12, 12, 1, 2)]
        self.features = nn.Sequential(*conv_bn(3, 8, 3, 2), nn.ReLU6(), *blocks, *conv_bn(12, 16, 1), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


def mobilenet() -> Example:
    return seeded(MobileNet, (2, 3, 16, 16))


class BasicBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(cin, cout, 3, stride)
        self.conv2, self.bn2 = conv_bn(cout, cout)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(*conv_bn(cin, cout, 1, stride)) if stride > 1 or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_bn(channels, hidden, 1),
            nn.ReLU(),
            *conv_bn(hidden, hidden),
            nn.ReLU(),
            *conv_bn(hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 16, 2))
        self.layer2 = nn.Sequential(Bottleneck(16, 4))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return self.fc(x.view(x.size(0), -1))


def resnet() -> Example:
    return seeded(ResNet, (2, 3, 32, 32))


class TorchAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class OwnAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class EncoderBlock(nn.Module):
    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), attention, nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, attention: Callable[[int, int], nn.Module], dim: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.1)
        self.pos_embed = nn.Parameter(torch.randn(1, 5, dim) * 0.1)
        self.blocks = nn.Sequential(*(EncoderBlock(dim, attention(dim, 2)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_torch() -> Example:
    return seeded(lambda: ViT(TorchAttention), (2, 3, 8, 8))


def vit_own() -> Example:
    return seeded(lambda: ViT(OwnAttention), (2, 3, 8, 8))


class PlainAttention(nn.Module):
    """With its products of matrices and its softmax spelled out."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (part(x).reshape(b, n, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        shares = torch.softmax(q @ k.transpose(-1, -2) * self.scale, -1)
        return self.proj((shares @ v).transpose(1, 2).reshape(b, n, c))


class TextNet(nn.Module):
    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(20, dim), nn.Parameter(torch.randn(1, 6, dim) * 0.1)
        self.blocks = nn.Sequential(EncoderBlock(dim, PlainAttention(dim, 2)), EncoderBlock(dim, OwnAttention(dim, 2)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, words: Tensor) -> Tensor:
        x = self.blocks(self.words(words) + self.positions)
        return self.head(self.norm(x).mean(1))


def text_net() -> Example:
    """A transformer on whole numbers."""
    words = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))
    return seeded(TextNet)[0], (words,)


def conv1d_net() -> Example:
    layers: list[nn.Module] = [nn.Conv1d(4, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)]
    layers += [
        nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=2),
        nn.LeakyReLU(0.1),
        nn.AvgPool1d(2),
        nn.Flatten(),
    ]
    return seeded(lambda: nn.Sequential(*layers, nn.Linear(32, 3)), (2, 4, 32))


def conv_kinds() -> Example:
    """Grouped, depthwise, dilated, strided and rectangular convolutions, one without BatchNorm, one without bias."""
    layers: list[nn.Module] = [nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU()]
    layers += [
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
    ]
    layers += [nn.Conv2d(8, 6, (1, 3), (1, 2), (0, 1)), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(6, 6, 1)]
    return seeded(lambda: nn.Sequential(*layers), (2, 4, 8, 8))


class Padded(nn.Module):
    """Asymmetric padding, padding by name, and reflection."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 2, 0))
        self.same = nn.Conv2d(3, 4, 3, padding="same", dilation=2)
        self.valid = nn.Conv2d(4, 4, 3, padding="valid")
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.last = nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.pad(x))
        x = self.reflect(self.valid(x))
        return self.last(F.pad(x, (0, 1, 0, 1)))


def padded() -> Example:
    return seeded(Padded, (2, 3, 8, 8))


class SamePadConv2d(nn.Conv2d):
    """The subclass that efficient nets use: padding that depends on the size of the input."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class OwnWeightConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.relu(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Subclassed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = SamePadConv2d(3, 4, 3, 2)
        self.conv = OwnWeightConv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.stem(x))


def conv_subclass() -> Example:
    """Needs torch.export, for the arithmetic on sizes."""
    return seeded(Subclassed, (2, 3, 9, 9))


def own_weight_conv() -> Example:
    return seeded(lambda: nn.Sequential(OwnWeightConv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)), (2, 3, 8, 8))


class ShapeBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(16, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        while x.shape[-1] > 2:
            x = F.max_pool2d(F.relu(x), 2)
        return self.fc(x.flatten(1))


def shape_branch() -> Example:
    """Needs torch.export: symbolic tracing cannot follow the loop."""
    return seeded(ShapeBranch, (2, 3, 8, 8))


class DenseNet(nn.Module):
    """Concatenation of values of different range, BatchNorm before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3))
        self.norm, self.fc = nn.BatchNorm2d(20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))) * (i + 1))
        x = F.avg_pool2d(F.relu(self.norm(torch.cat(features, 1))), 2)
        return self.fc(x.mean((2, 3)))


def densenet() -> Example:
    return seeded(DenseNet, (2, 3, 8, 8))


class Activations(nn.Module):
    """Every activation as a function and as a module."""

    def __init__(self) -> None:
        super().__init__()
        kinds = [
            nn.ReLU(),
            nn.ReLU6(),
            nn.Hardswish(),
            nn.SiLU(),
            nn.GELU(),
            nn.Hardsigmoid(),
            nn.LeakyReLU(0.2),
        ]
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in kinds)
        self.acts = nn.ModuleList(kinds)

    def forward(self, x: Tensor) -> Tensor:
        functions = [F.relu, F.relu6, F.hardswish, F.silu, F.gelu, F.hardsigmoid, F.leaky_relu]
        for conv, act, function in zip(self.convs, self.acts, functions, strict=True):
            x = function(act(conv(x)) - 0.1)
        return torch.clamp(x.sigmoid() + torch.tanh(x) + torch.relu(x) + x.relu(), min=0.2, max=2.0)


def activations() -> Example:
    return seeded(Activations, (2, 4, 4, 4))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv_bn(3, 8)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.project = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn(self.conv(x)))
        scale = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.project(x * scale)


def squeeze_excite() -> Example:
    return seeded(SqueezeExcite, (2, 3, 8, 8))


class CalledTwice(nn.Module):
    """One module called twice, also under a second name, and a weight shared by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.conv
        self.relu = nn.ReLU(inplace=True)
        self.embed, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.again(self.relu(self.conv(x))))
        return self.head(self.embed(x.mean((2, 3))))


def called_twice() -> Example:
    return seeded(CalledTwice, (2, 4, 6, 6))


class InPlace(nn.Module):
    """Values changed in place that other branches read afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        kept = x
        y = self.conv2(self.relu(x))
        y += x
        return y.mul_(2.0).relu_() - kept


def in_place() -> Example:
    return seeded(InPlace, (2, 3, 4, 4))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = self.image(x) + self.vector(y)[:, :, None, None]
        a, b = fused.chunk(2, dim=1)
        return self.head(fused.amax((2, 3))), a * b, a.reshape(a.size(0), -1)


def two_inputs() -> Example:
    return seeded(TwoInputs, (2, 3, 4, 4), (2, 6))


class ChannelShuffle(nn.Module):
    """Arithmetic on sizes, split and permutation, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(*conv_bn(4, 4, 1), nn.ReLU(), *conv_bn(4, 4, 3, groups=4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        left, right = torch.split(x, 4, dim=1)
        x = torch.cat((left, self.branch(right)), dim=1)
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


def channel_shuffle() -> Example:
    return seeded(ChannelShuffle, (2, 8, 4, 4))


MODELS: dict[str, Callable[[], Example]] = {
    build.__name__: build
    for build in (
        mlp,
        conv_net,
        mobilenet,
        resnet,
        vit_torch,
        vit_own,
        text_net,
        conv1d_net,
        conv_kinds,
        padded,
        conv_subclass,
        own_weight_conv,
        shape_branch,
        densenet,
        activations,
        squeeze_excite,
        called_twice,
        in_place,
        two_inputs,
        channel_shuffle,
    )
}
"""All models by name; a test over this dictionary meets everything that mbqc must take."""
