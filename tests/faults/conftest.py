"""What runs with faults are compared with."""

import launched
import pytest


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Return a function from what `launched.launch` takes to such a run without any fault."""
    runs = {}

    def run(workers=2, **environ):
        key = workers, *sorted(environ.items())
        if key not in runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            runs[key] = launched.launch(folder / "run", workers=workers, **environ)
            assert runs[key].finish(1200) == 0, runs[key].told
        return runs[key]

    return run


def pytest_collection_modifyitems(config, items):
    """Leave out the whole product, which takes hours, unless `-m` names it."""
    if "faults" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("faults")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
