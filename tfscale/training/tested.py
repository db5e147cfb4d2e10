"""What a model gets right and wrong on a test split of classes: mistakes, confusion, precision."""

import numpy as np

from tfscale.data import elements
from tfscale.data.shards import Shard
from tfscale.monitor import pictures

_NUM_MISTAKES = 32  # examples that are shown
_MOST_CURVES = 10  # of precision and recall
_THRESHOLDS = np.linspace(0, 1, 101)


def probabilities(trainer, test, num_classes, are_logits):
    """Predict a split; every worker calls this.

    Args:
        trainer: the `Trainer`.
        test: the `Batches`.
        num_classes: of the data.
        are_logits: the outputs are logits, and not probabilities.

    Returns:
        Float64 of shape (examples, classes); None for a model that has other outputs.
    """
    shape = trainer.model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] not in (1, num_classes):
        return None
    outputs = trainer.predict(test).astype(np.float64)
    if outputs.shape[1] == 1:
        one = 1 / (1 + np.exp(-outputs)) if are_logits else outputs
        return np.concatenate([1 - one, one], 1)
    if not are_logits:
        return outputs
    raised = np.exp(outputs - outputs.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


class Tested:
    """A test split with what a model says of it.

    Args:
        test: the `Batches`.
        outputs: as `probabilities` returned them.
    """

    def __init__(self, test, outputs):
        self._outputs = outputs
        self._shares = [elements.with_count(element)[0] for element in test.epoch(Shard())]
        self._true = np.concatenate([classes_of(share[1].numpy()) for share in self._shares])
        self._predicted = outputs.argmax(1)

    def confusion(self):
        """Draw the confusion matrix; returns `(png, size)` as `monitor.pictures` does."""
        classes = self._outputs.shape[1]
        counts = np.zeros([classes, classes], np.int64)
        np.add.at(counts, (self._true, self._predicted), 1)
        return pictures.confusion(counts)

    def worst(self):
        """Draw the worst mistakes, or return None: there are none, or no images."""
        of_true = self._outputs[np.arange(len(self._true)), self._true]
        wrong = np.flatnonzero(self._predicted != self._true)
        worst = wrong[np.argsort(of_true[wrong], kind="stable")][:_NUM_MISTAKES]
        if not len(worst) or not pictures.are_images(self._shares[0][0]):
            return None
        ends = np.cumsum([0] + [len(share[1]) for share in self._shares])
        images = []
        for i in worst:
            at = np.searchsorted(ends, i, side="right") - 1
            images.append(self._shares[at][0][i - ends[at]].numpy())
        captions = [f"{self._true[i]} as {self._predicted[i]}" for i in worst]
        return pictures.grid(np.stack(images), captions)

    def counts(self):
        """Give, for the first classes, true and false positives, true and false negatives.

        Yields:
            Pairs of a class and four vectors over thresholds from 0 to 1.
        """
        for label in range(min(self._outputs.shape[1], _MOST_CURVES)):
            scores, is_class = self._outputs[:, label], self._true == label
            found, wrong = (
                len(part) - np.searchsorted(np.sort(part), _THRESHOLDS)
                for part in (scores[is_class], scores[~is_class])
            )
            yield label, (found, wrong, (~is_class).sum() - wrong, is_class.sum() - found)


def classes_of(y):
    """Return numbers of classes, of such numbers or of one-hot vectors."""
    if y.ndim == 2 and y.shape[1] > 1:
        return y.argmax(1)
    return y.reshape(len(y)).astype(np.int64) if y.dtype.kind in "iub" else y.reshape(len(y))
