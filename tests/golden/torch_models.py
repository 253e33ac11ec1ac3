"""Small models with the structures that torchvision's, and other, networks have when torch exports them."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

BATCH = {0: "N"}
IMAGE = {0: "N", 2: "H", 3: "W"}


@dataclass
class Case:
    """A module and the shapes of its inputs; the first dimension is the batch."""

    name: str
    module: nn.Module
    shapes: list
    axes: dict = field(default_factory=lambda: BATCH)
    opsets: tuple = (13, 11, 17)
    # Export as for training, so that batch normalization and dropout stay; the module is still in evaluation mode.
    preserve: bool = False


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class SqueezeExcite(nn.Module):
    """Channel attention; SiLU and Sigmoid in EfficientNet, ReLU and Hardsigmoid in MobileNetV3."""

    def __init__(self, channels, squeezed, activation, gate):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation, self.gate = activation(), gate()

    def forward(self, x):
        return x * self.gate(self.fc2(self.activation(self.fc1(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, squeeze-excite, project, add."""

    def __init__(self, activation, gate_activation, gate):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(6, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            activation(),
            nn.Conv2d(12, 12, 5, padding=2, groups=12, bias=False),
            nn.BatchNorm2d(12),
            activation(),
            SqueezeExcite(12, 4, gate_activation, gate),
            nn.Conv2d(12, 6, 1, bias=False),
            nn.BatchNorm2d(6),
        )

    def forward(self, x):
        return x + self.block(x)


class Shuffle(nn.Module):
    """ShuffleNet v2: one half passes, the other is convolved, then the channels are interleaved."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1), nn.ReLU()
        )

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, self.branch(right)), dim=1)
        b, c, h, w = x.size()
        x = x.view(b, 2, c // 2, h, w)
        return torch.transpose(x, 1, 2).contiguous().view(b, c, h, w)


class Dense(nn.Module):
    """DenseNet: layers that read all earlier ones, then a transition."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 3, 3, padding=1, bias=False)) for c in (4, 7)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 5, 1), nn.AvgPool2d(2, 2))

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.transition(torch.cat(features, 1))


class Inception(nn.Module):
    """Branches with 1x7 and 7x1 kernels, and an average pool that counts padding."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(
            nn.Conv2d(4, 3, (1, 7), padding=(0, 3)), nn.ReLU(), nn.Conv2d(3, 3, (7, 1), padding=(3, 0)), nn.ReLU()
        )
        self.b = nn.Conv2d(4, 3, 1)
        self.c = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        pooled = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        largest = F.max_pool2d(x, kernel_size=3, stride=1, padding=1)
        return torch.cat([self.a(x), F.relu(self.b(pooled)), self.c(largest)], 1)


class UNet(nn.Module):
    """One step down and one up, with a skip."""

    def __init__(self, up):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.middle = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.up = up
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        skip = self.down(x)
        return self.last(torch.cat([skip, self.up(self.middle(self.pool(skip)))], dim=1))


class Bottleneck(nn.Module):
    """ResNet: a strided bottleneck with a projected skip, pool and classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.block = nn.Sequential(
            nn.Conv2d(6, 4, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.skip = nn.Sequential(nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
        self.average = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.block(x) + self.skip(x))
        return self.fc(torch.flatten(self.average(x), 1))


class Vgg(nn.Module):
    """AdaptiveAvgPool2d((7, 7)) over 14 x 14, then a classifier with dropout."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(98, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))

    def forward(self, x):
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class Attention(nn.Module):
    """A pre-norm transformer layer, written out: layer normalization, softmax attention, GELU."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))

    def forward(self, x):
        b, t, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) / (c // 2) ** 0.5, dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))


class Sequence(nn.Module):
    """A recurrent layer, batch first; the output sequence only."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Embedded(nn.Module):
    """Token ids to an embedding, its mean over time, and logits."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, ids):
        return self.fc(self.embedding(ids).mean(dim=1))


def cases():
    """Every model. Weights are random: call after seeding."""
    images = [(2, 4, 6, 6)]

    def function(name, body, shapes=images, **options):
        return Case(name, Function(body), shapes, **options)

    def activation(name, module):
        return Case(name, nn.Sequential(nn.Conv2d(4, 4, 1), module), images)

    return [
        Case("mobilenet_v3", InvertedResidual(nn.Hardswish, nn.ReLU, nn.Hardsigmoid), [(2, 6, 7, 7)]),
        Case(
            "mobilenet_v3_train", InvertedResidual(nn.Hardswish, nn.ReLU, nn.Hardsigmoid), [(2, 6, 7, 7)], preserve=True
        ),
        Case("efficientnet", InvertedResidual(nn.SiLU, nn.SiLU, nn.Sigmoid), [(2, 6, 7, 7)]),
        Case("mobilenet_v2", InvertedResidual(nn.ReLU6, nn.ReLU6, nn.Sigmoid), [(2, 6, 7, 7)], preserve=True),
        Case("shufflenet", Shuffle(), [(2, 8, 6, 6)]),
        Case("shufflenet_any_size", Shuffle(), [(2, 8, 6, 6)], axes=IMAGE),
        Case("densenet", Dense(), [(2, 4, 6, 6)]),
        Case("densenet_train", Dense(), [(2, 4, 6, 6)], preserve=True),
        Case("inception", Inception(), [(2, 4, 9, 9)]),
        Case("resnet", Bottleneck(), [(2, 3, 20, 20)]),
        Case("resnet_train", Bottleneck(), [(2, 3, 20, 20)], preserve=True),
        Case("vgg", Vgg(), [(2, 1, 14, 14)]),
        Case("unet_transposed", UNet(nn.ConvTranspose2d(4, 4, 2, stride=2)), [(2, 2, 8, 8)]),
        Case("unet_bilinear", UNet(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)), [(2, 2, 8, 8)]),
        Case(
            "unet_bilinear_corners",
            UNet(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
            [(2, 2, 8, 8)],
        ),
        Case("unet_nearest", UNet(nn.Upsample(scale_factor=2, mode="nearest")), [(2, 2, 8, 8)]),
        function(
            "resize_like",
            lambda x, y: F.interpolate(x, size=y.shape[2:], mode="nearest") + y,
            [(2, 3, 4, 4), (2, 3, 8, 12)],
            axes=IMAGE,
        ),
        function(
            "resize_like_bilinear",
            lambda x, y: F.interpolate(x, size=y.shape[-2:], mode="bilinear", align_corners=False) + y,
            [(2, 3, 4, 4), (2, 3, 7, 9)],
            axes=IMAGE,
        ),
        function(
            "resize_down_bilinear",
            lambda x: F.interpolate(x, size=(3, 5), mode="bilinear", align_corners=False),
            [(2, 2, 8, 8)],
        ),
        function(
            "resize_corners_any_size",
            lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True),
            [(2, 2, 6, 6)],
            axes=IMAGE,
        ),
        Case(
            "transposed_output_padding",
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
            [(2, 4, 5, 5)],
        ),
        Case("transposed_dilated", nn.ConvTranspose2d(3, 2, 3, stride=1, padding=2, dilation=2), [(2, 3, 6, 6)]),
        Case("transposed_1d", nn.ConvTranspose1d(3, 4, 4, stride=2, padding=1), [(2, 3, 7)]),
        Case(
            "conv_1d",
            nn.Sequential(
                nn.Conv1d(3, 6, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 4, 3, dilation=2)
            ),
            [(2, 3, 24)],
        ),
        Case(
            "conv_grouped_dilated",
            nn.Sequential(
                nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2), nn.ReLU(), nn.Conv2d(8, 4, (3, 2), stride=(2, 1))
            ),
            [(2, 4, 8, 8)],
        ),
        Case("conv_3d", nn.Conv3d(2, 3, 3, padding=1, stride=(1, 2, 2)), [(2, 2, 4, 6, 6)], opsets=(13,)),
        Case("max_pool_ceil", nn.MaxPool2d(3, stride=2, ceil_mode=True), [(2, 3, 8, 8)]),
        Case("max_pool_dilated", nn.MaxPool2d(3, stride=1, padding=1, dilation=2), [(2, 3, 8, 8)]),
        Case(
            "average_pool_ceil",
            nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
            [(2, 3, 8, 8)],
        ),
        Case("average_pool_padded", nn.AvgPool2d((3, 2), stride=(2, 1), padding=(1, 1)), [(2, 3, 7, 7)]),
        Case("pad_reflect", nn.Sequential(nn.ReflectionPad2d((1, 2, 2, 1)), nn.Conv2d(3, 2, 3)), [(2, 3, 6, 6)]),
        Case("pad_replicate", nn.Sequential(nn.ReplicationPad2d(1), nn.Conv2d(3, 2, 3)), [(2, 3, 6, 6)]),
        Case("pad_constant", nn.Sequential(nn.ConstantPad2d((0, 1, 2, 0), 0.5), nn.Conv2d(3, 2, 3)), [(2, 3, 6, 6)]),
        Case("leaky_relu", nn.Sequential(nn.Conv2d(4, 4, 1), nn.LeakyReLU(0.1)), images),
        Case("prelu", nn.Sequential(nn.PReLU(4), nn.PReLU(1, 0.4)), images),
        activation("elu", nn.ELU(0.7)),
        activation("selu", nn.SELU()),
        activation("gelu", nn.GELU()),
        activation("gelu_tanh", nn.GELU(approximate="tanh")),
        activation("softplus", nn.Softplus()),
        activation("tanh", nn.Tanh()),
        activation("hardtanh", nn.Hardtanh(-0.5, 0.75)),
        activation("mish", nn.Mish()),
        activation("log_softmax", nn.LogSoftmax(dim=1)),
        activation("clamp_low", Function(lambda x: torch.clamp(x, min=-0.25))),
        function("flatten_view", lambda x: x.view(x.size(0), -1) * 2.0),
        function(
            "chunk", lambda x: torch.cat([part * (i + 1) for i, part in enumerate(x.chunk(3, dim=1))], 1), [(2, 7, 4)]
        ),
        function("split", lambda x: [part + 1.0 for part in torch.split(x, [1, 2, 3], dim=2)], [(2, 3, 6)]),
        function("slice_stride", lambda x: x[:, ::2, 1:-1, -3:]),
        function("select_stack", lambda x: torch.stack([x[:, 0], x[:, -1]], dim=-1)),
        function("squeeze_unsqueeze", lambda x: x.mean(dim=(2, 3), keepdim=True).squeeze(-1).squeeze(-1).unsqueeze(1)),
        function("where", lambda x, y: torch.where((x > y) | (x <= -0.5), x, y * 0.5), [(2, 3, 4), (2, 3, 4)]),
        function("compare", lambda x, y: (torch.eq(x, x), (x < y) & (y >= 0.0), x != y), [(2, 3, 4), (2, 3, 4)]),
        function("argmax", lambda x: (torch.argmax(x, dim=1), torch.argmax(x, dim=-1, keepdim=True)), [(2, 5, 4)]),
        function(
            "reductions",
            lambda x: (x.sum(dim=1), x.amax(dim=(1, 2)), x.amin(dim=-1, keepdim=True), x.mean(dim=1), x.std(dim=-1)),
            [(2, 3, 4)],
        ),
        function(
            "arithmetic",
            lambda x, y: torch.sqrt(torch.abs(x)) + torch.exp(y) / (y * y + 1.0) - x**3 + torch.log(x * x + 0.5),
            [(2, 3, 4), (2, 1, 4)],
        ),
        function("expand", lambda x, y: x.expand_as(y) + y.new_full((y.shape[1], 1), 2.0), [(2, 1, 4), (2, 3, 4)]),
        function("permute_matmul", lambda x, y: torch.matmul(x.permute(0, 2, 1), y), [(2, 3, 4), (2, 3, 5)]),
        function("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), [(2, 8, 3, 3)]),
        function("normalize", lambda x: F.normalize(x, dim=1)),
        Case("layer_norm", nn.LayerNorm((4, 6)), [(2, 3, 4, 6)]),
        Case("instance_norm", nn.InstanceNorm2d(4, affine=True), images),
        Case("batch_norm_1d", nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU()), [(2, 5)], preserve=True),
        Case("transformer", Attention(), [(2, 5, 12)]),
        Case("lstm", Sequence(nn.LSTM(4, 5, batch_first=True)), [(2, 6, 4)]),
        Case(
            "lstm_bidirectional",
            Sequence(nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True)),
            [(2, 6, 4)],
            opsets=(13,),
        ),
        Case("gru", Sequence(nn.GRU(4, 5, batch_first=True)), [(2, 6, 4)]),
        Case("embedding", Embedded(), [("ids", 20, (2, 7))]),
    ]
