"""The predecessor's way, written anew from its description: its CNN, batch 4, SGD, two loader workers, one image at a
time through a transform, an evaluation after each epoch. Prints the accuracy and the seconds so far after each.
"""

from __future__ import annotations

import argparse
import time

from measure import packed_data

import torch  # isort: skip
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trainer.data.packed import open_packed


class Images(Dataset[tuple[torch.Tensor, int]]):
    """One image at a time, as torchvision's CIFAR10 with ToTensor and Normalize((.5,) * 3, (.5,) * 3) gives it."""

    def __init__(self, split: str) -> None:
        arrays = open_packed(packed_data()).arrays
        self.images, self.labels = arrays[f"{split}_images"].copy(), arrays[f"{split}_labels"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous().float().div(255)
        return image.sub(0.5).div(0.5), int(self.labels[index])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    train = DataLoader(Images("train"), batch_size=4, shuffle=True, num_workers=2)
    test = DataLoader(Images("test"), batch_size=4, num_workers=2)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    begun = time.perf_counter()
    for epoch in range(1, epochs + 1):
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        trained = time.perf_counter() - begun
        with torch.no_grad():
            correct = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in test)
        print(f"epoch {epoch}: accuracy {correct / 10_000:.4f} after {trained:.1f} s of training", flush=True)


if __name__ == "__main__":
    main()
