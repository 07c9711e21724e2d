"""Train the digits network and write its weights: `python models/train_digits.py`.

The held-out quarter is measured once, after the last step; nothing is chosen by it.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

# Run by its path, the script finds its own folder on sys.path but not the package around it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.digits import WEIGHTS, DigitsResNet, accuracy, digits_resnet, load_split

EPOCHS = 40
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 1e-2
WEIGHT_DECAY = 1e-2
LABEL_SMOOTHING = 0.05


def train(images: Tensor, labels: Tensor, epochs: int = EPOCHS) -> DigitsResNet:
    """Return a network in eval mode, trained on `(N, 1, 8, 8)` images and `(N,)` labels."""
    torch.manual_seed(0)
    model = DigitsResNet()
    # Whole batches only: the statistics of a small remainder would blur the running ones.
    batches = len(images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=epochs * batches
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    for _ in range(epochs):
        order = torch.randperm(len(images))[: batches * BATCH_SIZE]
        for batch in order.view(batches, BATCH_SIZE):
            loss = loss_function(model(shift_randomly(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def shift_randomly(images: Tensor) -> Tensor:
    """Move each of the `(N, 1, H, W)` images by -1, 0 or 1 pixels along H and W, zeros behind."""
    count, _, height, width = images.shape
    windows = nn.functional.pad(images, (1, 1, 1, 1)).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(3, (2, count))
    return windows[torch.arange(count), :, down, right]


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state of `model` to `path`, which holds the old bytes or the new, never a part."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(save(model.state_dict()))
    partial.replace(path)


def main() -> None:
    """Train on the training part, write the weights, print the held-out accuracy."""
    split = load_split()
    save_weights(train(split.train_images, split.train_labels), WEIGHTS)
    # Read back, so that the number printed is that of the file.
    held_out = accuracy(digits_resnet(), split.test_images, split.test_labels)
    size = WEIGHTS.stat().st_size
    print(f"{WEIGHTS}: {size:,} bytes, held-out accuracy {held_out:.2%}")


if __name__ == "__main__":
    main()
