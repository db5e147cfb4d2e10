r"""A small convolutional network on MNIST.

    python -m tfscale.fit --config=experiments/mnist_cnn.py --config.data.download=true
    python -m tfscale.fit --config=experiments/mnist_cnn.py --config.data.data_dir=FOLDER

FOLDER holds the four original idx files, or what TFDS has prepared before.

Data: 60,000 images of 28x28 pixels to train on, 10,000 to test. Model: 421,642 parameters.
Cost: 2,345 steps.
Result: a test accuracy of at least 0.98 after these 5 epochs is what is usual for a network of
this kind on MNIST. It was not measured by us. The same network and recipe
were measured on Fashion-MNIST, whose files have the same format and whose task is harder:

    python -m tfscale.fit --config=experiments/mnist_cnn.py --config.data.name=fashion_mnist \
        --config.data.data_dir=/usr/share/datasets/fashion-mnist

gave test accuracy 0.9070, test loss 0.2579 after 146 s. Measured once, on one device with two CPU
cores; seconds are those the run reports.
"""

from tfscale.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig


def get_config():
    """Return the run: 5 epochs of Adam, whose rate falls from 1e-3 along a cosine."""
    return RunConfig(
        data=DataConfig(name="mnist", global_batch_size=128),
        model=ModelConfig(name="convnet"),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3),
        train=TrainConfig(epochs=5),
    )
