"""Every test leaves the process as it found it."""

import signal
import sys

import pytest

from tfscale.testing import no_leaks  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def _leave_nothing(no_leaks):  # noqa: F811
    """Apply `no_leaks` to all tests."""


def pytest_configure(config):
    """Hear Ctrl-C as from a terminal: a shell has its background jobs ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session):
    """Give this process three logical CPUs, while TensorFlow has not yet started."""
    if "tensorflow" in sys.modules:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        logical = [tf.config.LogicalDeviceConfiguration()] * 3
        tf.config.set_logical_device_configuration(cpu, logical)
