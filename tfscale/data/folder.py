"""A folder of images by class, `root/<split>/<class>/*.png`, read at random.

Owns the list of files and their decoding inside the graph: PNG, JPEG, GIF (its first frame) and
BMP, as three channels of uint8, resized to one size. Only paths are held in memory.
"""

import os

import numpy as np
import tensorflow as tf

from tfscale.data import arrays
from tfscale.names import nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp")
CHANNELS = 3


class FolderCollection:
    """Images below a folder, one folder a class.

    Classes are numbered in the order of their names in the training split. `root/<class>/*`
    without folders for splits is taken where `root/<train_split>` does not exist and no other
    split is asked for.

    Args:
        root: the folder.
        train_split: name of the training split's folder; its classes are those of all splits.
        image_size: height and width in pixels that images are resized to (bilinear).

    Raises:
        ValueError: if there is no such folder, or it has no class.
    """

    largest_value = 255

    def __init__(self, root, train_split, image_size):
        if not root or not os.path.isdir(root):
            raise ValueError(
                "`data.data_dir` must be a folder of images by class. Received: "
                f"{root!r}, which is no folder. Use --config.data.data_dir=FOLDER."
            )
        if image_size < 1:
            raise ValueError(
                "`data.image_size` must be at least 1 pixel. Received: "
                f"image_size={image_size}. Use for example 32."
            )
        self.root, self._train_split, self._image_size = root, train_split, image_size
        self._flat = not os.path.isdir(os.path.join(root, train_split))
        self.classes = _folders(self._folder(train_split))
        if not self.classes:
            raise ValueError(
                "A folder of images must have one folder a class. Received: "
                f"{self._folder(train_split)}, which has none. Put images into "
                f"{os.path.join(root, train_split, 'CLASS')}."
            )
        self.num_classes = len(self.classes)

    def require(self, split):
        """Raise ValueError unless the split is a folder with the classes of the training split."""
        folder = self._folder(split)
        if not os.path.isdir(folder) or (self._flat and split != self._train_split):
            raise ValueError(
                f"The split must be a folder in {self.root}: {', '.join(_folders(self.root))}. "
                f"Received: {split!r}.{nearest(split, _folders(self.root))} Without folders "
                "for splits set data.test_split='' and use data.validation_fraction."
            )
        strange = sorted(set(_folders(folder)) - set(self.classes))
        if strange:
            raise ValueError(
                "Every split must have the classes of the training split: "
                f"{', '.join(self.classes)}. Received: {', '.join(strange)} in {folder}. "
                "Rename or remove these folders."
            )

    def open(self, split):
        """Return the source of a split's images."""
        self.require(split)
        folder = self._folder(split)
        paths, labels = [], []
        for label, name in enumerate(self.classes):
            for root, _, files in sorted(os.walk(os.path.join(folder, name))):
                images = sorted(f for f in files if f.lower().endswith(SUFFIXES))
                paths += [os.path.join(root, f) for f in images]
                labels += [label] * len(images)
        if not paths:
            raise ValueError(
                f"A split must have at least one image ({', '.join(SUFFIXES)}). Received: {folder} "
                "without any. Put images into its class folders."
            )
        return FolderSource(folder, paths, labels, self._image_size)

    def _folder(self, split):
        return self.root if self._flat else os.path.join(self.root, split)


class FolderSource:
    """Images by path, decoded when they are read.

    Args:
        folder: what the paths are below.
        paths: the files.
        labels: the class of each.
        image_size: height and width in pixels.
    """

    def __init__(self, folder, paths, labels, image_size):
        self.num_examples = len(paths)
        self._folder, self._names = folder, [os.path.relpath(p, folder) for p in paths]
        self._image_size = image_size
        with tf.device("CPU:0"):
            self._paths = tf.constant(paths)
        self._labels = arrays.as_tensor(np.asarray(labels, np.int64))

    def read(self, indices):
        """Return images (examples, size, size, 3), uint8, and labels, for the graph."""
        size = [self._image_size, self._image_size]

        def decode(path):
            image = tf.io.decode_image(tf.io.read_file(path), CHANNELS, expand_animations=False)
            image = tf.image.resize(tf.ensure_shape(image, [None, None, CHANNELS]), size)
            return tf.saturate_cast(tf.round(image), tf.uint8)

        spec = tf.TensorSpec([*size, CHANNELS], tf.uint8)
        images = tf.map_fn(decode, tf.gather(self._paths, indices), fn_output_signature=spec)
        return images, tf.gather(self._labels, indices)

    def content(self):
        """Yield bytes that tell this source from another: names and some files."""
        yield "\n".join(self._names).encode()
        for i in np.unique(np.linspace(0, self.num_examples - 1, 8).astype(np.int64)):
            with open(os.path.join(self._folder, self._names[i]), "rb") as file:
                yield file.read()


def _folders(path):
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and not e.name.startswith("."))
