"""Train the demo model and write digits.onnx and digits.npz beside this file. See README.md."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
SEED = 7
EPOCHS = 60
BATCH = 64
CALIBRATION = 128


def convolution(inputs, outputs, kernel, groups=1, activation=nn.ReLU):
    """Convolution, batch normalization, activation."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, activation()) if activation else nn.Sequential(*layers)


class Residual(nn.Module):
    """Two 3x3 convolutions and a skip connection."""

    def __init__(self, channels):
        super().__init__()
        self.first = convolution(channels, channels, 3)
        self.second = convolution(channels, channels, 3, activation=None)

    def forward(self, x):
        return F.relu(x + self.second(self.first(x)))


class Digits(nn.Module):
    """Image [N, 1, 8, 8] in 0..1 to ten logits; one of each thing that a quantizer must handle."""

    def __init__(self):
        super().__init__()
        self.stem = convolution(1, 24, 3)
        self.residual = Residual(24)
        self.pool = nn.MaxPool2d(2)
        self.depthwise = convolution(24, 24, 3, groups=24, activation=nn.ReLU6)
        self.pointwise = convolution(24, 48, 1, activation=nn.ReLU6)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(48, 10)

    def forward(self, x):
        x = self.pool(self.residual(self.stem(x)))
        x = self.average(self.pointwise(self.depthwise(x)))
        return self.classifier(torch.flatten(x, 1))


def shifted(images, generator):
    """Each image moved by -1, 0 or 1 pixel in each direction."""
    padded = F.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator)
    return torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, offsets.tolist())])


def train(images, labels):
    """The trained model, in evaluation mode."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            loss = F.cross_entropy(model(shifted(images[batch], generator)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model, path):
    """Write the model with its batch normalizations as nodes of their own, as fusing them is the quantizer's work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 8, 8),),
            path,
            dynamo=False,
            opset_version=13,
            # The exporter folds batch normalization only when it exports for evaluation.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        )
    onnx.checker.check_model(onnx.load(path), full_check=True)


def accuracy(path, images, labels):
    """Part of the images that onnxruntime, running the file, gives the right label."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images.numpy()})
    return float((logits.argmax(axis=1) == labels.numpy()).mean())


def scaled(pixels):
    """Pixels 0..16 as images in 0..1."""
    return torch.from_numpy(pixels.astype(np.float32) / 16.0)


def main():
    torch.set_num_threads(1)
    digits = load_digits()
    pixels, labels = digits.images.astype(np.uint8)[:, np.newaxis], digits.target.astype(np.uint8)
    train_pixels, test_pixels, train_labels, test_labels = train_test_split(
        pixels, labels, test_size=0.25, random_state=SEED, stratify=labels
    )
    model = train(scaled(train_pixels), torch.from_numpy(train_labels.astype(np.int64)))
    export(model, HERE / "digits.onnx")
    np.savez_compressed(
        HERE / "digits.npz",
        calibration=train_pixels[:CALIBRATION],
        test=test_pixels,
        test_labels=test_labels,
    )
    print(f"parameters: {sum(p.numel() for p in model.parameters())}")
    print(f"test accuracy: {accuracy(HERE / 'digits.onnx', scaled(test_pixels), torch.from_numpy(test_labels)):.4f}")


if __name__ == "__main__":
    main()
