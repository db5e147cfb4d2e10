"""What a model gets right and wrong on a test split of classes: mistakes, confusion, precision.

Of the split its labels are held in memory, and the images that are shown: it is read once for
the first and, where there are mistakes, once more for the others.
"""

import numpy as np
import tensorflow as tf

from tfscale import strategy as strategy_lib
from tfscale.data import batches, elements
from tfscale.data.shards import Shard
from tfscale.monitor import pictures

_NUM_MISTAKES = 32  # examples that are shown
_MOST_CURVES = 10  # of precision and recall
_MOST_NUMBERS = 3  # of a target that is no class
_THRESHOLDS = np.linspace(0, 1, 101)
_MOST_OUTPUTS = 50_000_000  # numbers of all examples and classes, 200 MB
_MOST_CLASSES = 200  # of a confusion matrix of all of them
_MOST_CONFUSED = 40  # classes that are shown where there are more


def probabilities(trainer, test, num_classes, are_logits):
    """Predict a split; every worker calls this.

    Args:
        trainer: the `Trainer`.
        test: the `Batches`.
        num_classes: of the data.
        are_logits: the outputs are logits, and not probabilities.

    Returns:
        Float32 of shape (examples, classes); None for a model that has other outputs, or where
        these are more than fit into memory well.

    Raises:
        RuntimeError: on all workers, where another one cannot read the data.
    """
    shape = trainer.model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] not in (1, num_classes):
        return None
    if test.num_examples * shape[1] > _MOST_OUTPUTS:
        return None
    outputs = trainer.predict(_ReadByAll(test, trainer.strategy)).astype(np.float32, copy=False)
    if outputs.shape[1] == 1:
        one = 1 / (1 + np.exp(-outputs)) if are_logits else outputs
        return np.concatenate([1 - one, one], 1)
    if are_logits:
        outputs -= outputs.max(1, keepdims=True)
        np.exp(outputs, out=outputs)
        outputs /= outputs.sum(1, keepdims=True)
    return outputs


class _ReadByAll(batches.Batches):
    """A split of which all workers have read a batch before any of them predicts with it.

    One that cannot would else leave the others waiting for it.

    Args:
        data: the `Batches`.
        strategy: that of the run.
    """

    def __init__(self, data, strategy):
        self._data, self._strategy = data, strategy
        self.element_spec = data.element_spec
        self.num_examples, self.steps_per_epoch = data.num_examples, data.steps_per_epoch

    def epoch(self, shard):
        shares = iter(self._data.epoch(shard))
        while True:
            element, failed = None, None
            try:
                element = next(shares, None)
            except Exception as error:  # whatever it is, the others must not wait
                failed = error
            [fails] = strategy_lib.sum_over_workers(self._strategy, [int(failed is not None)])
            if fails:
                raise failed or RuntimeError(f"{fails} worker(s) cannot read the data.")
            if element is None:
                return
            yield element

    def end_epoch(self):
        self._data.end_epoch()


class Tested:
    """A test split with what a model says of it.

    Args:
        test: the `Batches`.
        outputs: as `probabilities` returned them.
        names: of the classes; () for their numbers.
    """

    def __init__(self, test, outputs, names=()):
        self._test, self._outputs = test, outputs
        self._names = names or [str(c) for c in range(outputs.shape[1])]
        labels = [classes_of(share[1].numpy()) for share in self._shares()]
        self._true = np.concatenate(labels).astype(np.int64)
        self._predicted = outputs.argmax(1)

    def _shares(self):
        """Read the split, a global batch at a time."""
        for element in self._test.epoch(Shard()):
            yield elements.with_count(element)[0]
        self._test.end_epoch()

    def confusion(self):
        """Draw the confusion matrix, or the part of it with the classes that are confused most.

        Returns:
            `(png, size)` as `monitor.pictures` does.
        """
        classes, is_wrong = self._outputs.shape[1], self._predicted != self._true
        shown, title = np.arange(classes), ""
        if classes > _MOST_CLASSES:
            either = np.concatenate([self._true[is_wrong], self._predicted[is_wrong]])
            mistakes = np.bincount(either, minlength=classes)
            shown = np.sort(np.argsort(-mistakes, kind="stable")[:_MOST_CONFUSED])
            title = f"the {len(shown)} most confused of {classes:,} classes"
        places = np.full(classes, -1)
        places[shown] = np.arange(len(shown))
        rows, columns = places[self._true], places[self._predicted]
        is_shown = (rows >= 0) & (columns >= 0)
        counts = np.zeros([len(shown)] * 2, np.int64)
        np.add.at(counts, (rows[is_shown], columns[is_shown]), 1)
        totals = np.bincount(self._true, minlength=classes)[shown]
        return pictures.confusion(counts, [self._names[c] for c in shown], totals, title)

    def worst(self):
        """Draw the worst mistakes, or return None: there are none, or no images."""
        of_true = self._outputs[np.arange(len(self._true)), self._true]
        wrong = np.flatnonzero(self._predicted != self._true)
        worst = wrong[np.argsort(of_true[wrong], kind="stable")][:_NUM_MISTAKES]
        if not len(worst):
            return None
        images = self._images(worst)
        if images is None:
            return None
        pairs = [(self._names[self._true[i]], self._names[self._predicted[i]]) for i in worst]
        captions = [
            " as ".join(name[: pictures.MOST_CHARACTERS // 2 - 2] for name in pair)
            for pair in pairs
        ]
        return pictures.grid(np.stack(images), captions)

    def _images(self, positions):
        """The inputs at these positions of the split, or None if they are no images."""
        found, begin = {}, 0
        for x, *_ in self._shares():
            if not pictures.are_images(x):
                return None
            mine = [i for i in positions if begin <= i < begin + len(x)]
            found |= {i: x[i - begin].numpy() for i in mine}
            begin += len(x)
        return [found[i] for i in positions]

    def counts(self):
        """Give, for the first classes, true and false positives, true and false negatives.

        Yields:
            Pairs of a class's name and four vectors over thresholds from 0 to 1.
        """
        for label in range(min(self._outputs.shape[1], _MOST_CURVES)):
            scores, is_class = self._outputs[:, label], self._true == label
            found, wrong = (
                len(part) - np.searchsorted(np.sort(part), _THRESHOLDS)
                for part in (scores[is_class], scores[~is_class])
            )
            yield (
                self._names[label],
                (found, wrong, (~is_class).sum() - wrong, is_class.sum() - found),
            )


def captions(y, num_classes, names=()):
    """Return a line of text for each target: a class's name or number, or numbers.

    Args:
        y: targets of shape (examples, ...), or a nest of such.
        num_classes: of the data; None for a regression.
        names: of the classes; () for their numbers.
    """
    first = tf.nest.flatten(y)[0]
    if not isinstance(y, tf.Tensor) or y.shape.rank > 2:
        return [""] * len(first)
    y = y.numpy().reshape(len(y), -1)
    if num_classes and y.shape[1] in (1, num_classes):
        classes = classes_of(y)
        return [names[c] if names and c == int(c) else f"{c:g}" for c in classes]
    return [" ".join(f"{value:.3g}" for value in row[:_MOST_NUMBERS]) for row in y]


def classes_of(y):
    """Return numbers of classes, of such numbers or of one-hot vectors."""
    if y.ndim == 2 and y.shape[1] > 1:
        return y.argmax(1)
    return y.reshape(len(y)).astype(np.int64) if y.dtype.kind in "iub" else y.reshape(len(y))
