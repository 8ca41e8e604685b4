"""For all tests: which run only when their marker is asked for by name, how many examples a property has, how processes
that test at once share the machine, and that a failure is named as it comes."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import is_hypothesis_test, settings

from autograder.nvml import gpus, only

# As the command line has it: tests do not wait by turning in place, since something else may run on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


class NamesFailures:
    """Names each failed test as it fails: a long run may be cut short before its summary."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._reporter.write_line(f"\nFAILED in {report.when}: {report.nodeid}", flush=True)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before torch is imported: workers of pytest-xdist share the cores, and are spread over the machine's GPUs."""
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker is None:
        if reporter := config.pluginmanager.get_plugin("terminalreporter"):
            config.pluginmanager.register(NamesFailures(reporter))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if found := gpus():
        os.environ |= only(found[int(worker.removeprefix("gw")) % len(found) :])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--examples",
        type=int,
        metavar="N",
        help="try each property on N examples and repeat the same run N times at most, where each of them is slow",
    )


@pytest.fixture
def repeats(pytestconfig: pytest.Config) -> Callable[[int], range]:
    """To run the same again: as often as a test says, or `--examples` where that is less."""
    few = pytestconfig.getoption("--examples")
    return lambda often: range(often if few is None else min(often, few))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    few = config.getoption("--examples")
    for item in items:
        if item.get_closest_marker("long") and "long" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="takes minutes: make test-long"))
        test = getattr(item, "obj", None)
        if few is not None and test is not None and is_hypothesis_test(test):
            kept = getattr(test, "_hypothesis_internal_use_settings", None) or settings()
            test._hypothesis_internal_use_settings = settings(kept, max_examples=min(few, kept.max_examples))
