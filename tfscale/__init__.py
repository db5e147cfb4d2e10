"""tfscale: Keras 3 models on TensorFlow, on one device or on many machines."""

__version__ = "0.1.0"
