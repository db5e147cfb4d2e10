r"""A perceptron of one hidden layer, 784-512-10, on MNIST.

    python -m tfscale.fit --config=experiments/mnist_mlp.py --config.data.download=true
    python -m tfscale.fit --config=experiments/mnist_mlp.py --config.data.data_dir=FOLDER

FOLDER holds the four original idx files, or what TFDS has prepared before.

Data: 60,000 images of 28x28 pixels to train on, 10,000 to test. Model: 407,050 parameters.
Cost: 4,690 steps.
Result: a test accuracy of 0.98 is the usual figure for this network on MNIST. It was not
measured by us. The same network and recipe were measured on Fashion-MNIST, whose
files have the same format:

    python -m tfscale.fit --config=experiments/mnist_mlp.py --config.data.name=fashion_mnist \
        --config.data.data_dir=/usr/share/datasets/fashion-mnist

gave test accuracy 0.8922, test loss 0.3047 after 20 s. Measured on one device with two CPU cores;
seconds are those the run reports.
"""

from tfscale.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig


def get_config():
    """Return the run: 10 epochs of Adam, whose rate falls from 1e-3 along a cosine."""
    return RunConfig(
        data=DataConfig(name="mnist", global_batch_size=128, transforms=("rescale", "flatten")),
        model=ModelConfig(name="mlp", arguments={"units": (512,)}),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3),
        train=TrainConfig(epochs=10),
    )
