r"""A convolutional network on a folder of images, one folder a class.

    python -m tfscale.fit --config=experiments/image_folder.py --config.data.data_dir=FOLDER

FOLDER holds train/CLASS/* and test/CLASS/*, PNG, JPEG, GIF or BMP of any size. A FOLDER of
classes alone needs `--config.data.test_split=` (empty) as well.

To try it, write the digits that ship with the package as images (from the top of the repository):

    python -c "import numpy as np, tensorflow as tf; \
        rows = np.loadtxt('tfscale/data/files/digits.csv.gz', delimiter=',', dtype='uint8'); \
        [tf.io.write_file('digit_images/%s/%d/%d.png' % (('test', 'train')[i % 5 > 0], r[-1], i), \
        tf.io.encode_png(r[:-1].reshape(8, 8, 1) * 15)) for i, r in enumerate(rows)]"
    python -m tfscale.fit --config=experiments/image_folder.py --config.data.data_dir=digit_images

Data then: 1,437 images to train on, a tenth of which is held out for validation, 360 to test, all
resized to 32x32 pixels. Model: 545,098 parameters.
Cost: 410 steps. 22 s on one device.
Result: test accuracy 0.9778, test loss 0.0787; validation accuracy 0.9792.
Measured on two CPU cores; seconds are those the run
reports, from the first step to the test.
"""

from tfscale.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig


def get_config():
    """Return the run: images of 32x32 pixels, a tenth of the training split for validation."""
    return RunConfig(
        data=DataConfig(
            name="image_folder",
            train_split="train",
            test_split="test",
            validation_fraction=0.1,
            image_size=32,
            global_batch_size=32,
        ),
        model=ModelConfig(name="convnet", arguments={"dropout": {"dense": 0.3}}),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3),
        train=TrainConfig(epochs=10),
    )
