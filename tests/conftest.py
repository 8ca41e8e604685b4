"""For all tests: those that take minutes run only when they are asked for by name of their marker."""

from __future__ import annotations

import os

import pytest

# As the command line has it: tests do not wait by turning in place, since something else may run on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "long" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: make test-long"))
