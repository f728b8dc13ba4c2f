"""Ten classes learned one after the other: `python examples/class_incremental.py` (needs scikit-learn).

A whitened head sees each class of the digits once, when it comes, and no sample a second time; what it keeps of the
others are their means and the covariance within classes. Beside it, a head that is trained on all samples at once.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from nc_callbacks import CentredMeanHead


def digits(backbone: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels for training and test."""
    pixels, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(pixels / 16, labels, test_size=0.2, stratify=labels, random_state=0)
    with torch.no_grad():
        features = [backbone(torch.from_numpy(part).float()) for part in (x, x_test)]
    return features[0], features[1], torch.from_numpy(y), torch.from_numpy(y_test)


def main() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(64, 256), nn.ReLU())  # random weights; any frozen network will do
    x, x_test, y, y_test = digits(backbone)
    head = CentredMeanHead(num_features=256, num_classes=2, whiten=True)
    for k in range(2, 11):
        head.extend(k)
        new = y < 2 if k == 2 else y == k - 1
        head.update(x[new], y[new])
        head.finalize()
        seen = y_test < k
        accuracy = (head(x_test[seen]).argmax(1) == y_test[seen]).float().mean()
        print(f"{k} classes: accuracy {accuracy:.3f}")
    at_once = LogisticRegression(max_iter=2000).fit(x.numpy(), y.numpy()).score(x_test.numpy(), y_test.numpy())
    print(f"trained on all ten at once: accuracy {at_once:.3f}")


if __name__ == "__main__":
    main()
