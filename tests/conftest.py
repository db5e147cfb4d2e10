"""Every test leaves the process as it found it."""

import pytest

from tfscale.testing import no_leaks  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def _leave_nothing(no_leaks):  # noqa: F811
    """Apply `no_leaks` to all tests."""
