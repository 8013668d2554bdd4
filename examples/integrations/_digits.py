"""scikit-learn's handwritten digits, 8 x 8 grey images in ten classes, as all the examples here use them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Digits(NamedTuple):
    """Images as rows of 64 numbers between 0 and 1, and their classes."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    def batches(self, epoch: int, size: int = 64) -> list[tuple[np.ndarray, np.ndarray]]:
        """The training set in another order in each epoch; what does not fill a batch is left out."""
        order = np.random.default_rng(epoch).permutation(len(self.train_x))
        rows = order[: len(order) // size * size].reshape(-1, size)
        return [(self.train_x[row], self.train_y[row]) for row in rows]

    def accuracy(self, logits: ArrayLike) -> float:
        """The part of the test set whose class has the largest of its row of logits."""
        return float((np.asarray(logits).argmax(1) == self.test_y).mean())


def digits() -> Digits:
    images, labels = load_digits(return_X_y=True)
    split = train_test_split((images / 16).astype("float32"), labels, test_size=0.2, random_state=0)
    train_x, test_x, train_y, test_y = map(np.asarray, split)
    return Digits(train_x, train_y, test_x, test_y)
