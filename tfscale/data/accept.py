"""The door for data from Python: arrays, datasets and batches become `Batches`."""

import functools

import tensorflow as tf

from tfscale.data import batches


@functools.lru_cache(maxsize=1)
def _last_dataset(dataset, steps_per_epoch):
    """The batches of the dataset that came last, so that calls of `fit` in a row share them."""
    return batches.from_dataset(dataset, steps_per_epoch=steps_per_epoch)


def as_batches(
    x,
    y=None,
    sample_weight=None,
    *,
    global_batch_size=32,
    steps_per_epoch=None,
    shuffle=False,
    seed=0,
    class_weight=None,
):
    """Return `Batches` of whatever a user calls data.

    Args:
        x: `Batches`, a `tf.data.Dataset` of global batches, or arrays: one, or a dict, tuple or
            list of them, of shape (examples, ...).
        y: targets, like `x`; only beside arrays.
        sample_weight: weights of the examples; only beside arrays.
        global_batch_size: examples an update, over all replicas; for arrays.
        steps_per_epoch: batches in an epoch; for a dataset.
        shuffle: a new order every epoch; for arrays.
        seed: of that order.
        class_weight: dict from class number to weight.

    Returns:
        A `data.batches.Batches`.

    Raises:
        ValueError: if the parts do not belong together.
    """
    if not isinstance(x, (batches.Batches, tf.data.Dataset)):
        if steps_per_epoch is not None:
            raise ValueError(
                "`steps_per_epoch` belongs to a tf.data.Dataset. Received: "
                f"steps_per_epoch={steps_per_epoch} with arrays. Leave it out."
            )
        return batches.from_arrays(
            x,
            y,
            sample_weight,
            global_batch_size=global_batch_size,
            shuffle=shuffle,
            seed=seed,
            class_weight=class_weight,
        )
    if y is not None or sample_weight is not None:
        raise ValueError(
            "`y` and `sample_weight` belong to arrays; a dataset holds its own. Received: "
            f"{type(x).__name__} with y or sample_weight. Zip them into the dataset."
        )
    if isinstance(x, tf.data.Dataset):
        if class_weight is not None:
            return batches.from_dataset(
                x, steps_per_epoch=steps_per_epoch, class_weight=class_weight
            )
        return _last_dataset(x, steps_per_epoch)
    if class_weight is not None or steps_per_epoch is not None:
        raise ValueError(
            "`class_weight` and `steps_per_epoch` are settled when Batches are made. Received: "
            f"class_weight={class_weight}, steps_per_epoch={steps_per_epoch} with Batches. "
            "Give them to data.batches.from_arrays or from_dataset."
        )
    return x
