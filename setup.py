"""Packaging of tfscale: what it needs, what it installs."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent


def version():
    """Read the version without importing the package, whose needs are not installed yet."""
    text = (ROOT / "tfscale" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


def long_description():
    """Return the README, where there is one."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


# The tests ran on the versions of constraints.txt, which lie in these ranges. TensorFlow is held
# to one minor version and Keras to three because the reduction replaces private methods;
# `make test-keras-versions` runs the tests of that on all three.
INSTALL_REQUIRES = [
    "absl-py>=2.1,<3",
    "array_record>=0.8,<0.9; platform_system == 'Linux'",
    # TensorFlow Datasets 4.9.10 imports it and declares it for Python < 3.9 only.
    "importlib_resources>=6.4,<8",
    "keras>=3.13,<3.16",
    # Spaces and oracles of tfscale.tune; its Bayesian one needs scikit-learn and SciPy.
    "keras-tuner[bayesian]>=1.4.8,<1.5",
    "matplotlib>=3.10,<4",
    "ml_collections>=1.1,<2",
    "numpy>=2.0,<3",
    # Draws the pictures of a run; matplotlib needs it as well.
    "pillow>=11",
    "tensorboard>=2.21,<2.22",
    "tensorflow>=2.21,<2.22",
    "tensorflow-datasets>=4.9.10,<4.10",
]

setup(
    name="tfscale",
    version=version(),
    description="Keras 3 models on TensorFlow, on one device or on many machines",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["tfscale", "tfscale.*"]),
    package_data={"tfscale": ["py.typed"], "tfscale.data": ["files/*"]},
    python_requires=">=3.11,<3.14",
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "cuda": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "dev": [
            # The schemas that the manifests for Kubernetes are checked against.
            "kubernetes-validate>=1.37,<2",
            "mypy>=2.4,<3",
            "psutil>=7,<8",
            "pytest>=9,<10",
            "pytest-timeout>=2.4,<3",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.17,<0.18",
        ],
    },
    entry_points={"console_scripts": ["tfscale=tfscale.__main__:main"]},
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
