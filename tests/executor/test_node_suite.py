"""ONNX's own operator tests up to opset 25, all of them: known_failures.toml says which fail, and nothing else does."""

import importlib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def suite():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("operators")


@pytest.fixture(scope="module")
def failures(suite):
    return suite.failures(suite.standard_cases(), suite.run_executor)


def test_only_what_is_listed_fails(suite, failures):
    unlisted = {name: text for name, text in failures.items() if suite.reason_of(name) is None}
    assert not unlisted, "\n".join(f"{name}: {text}" for name, text in unlisted.items())
    assert len(suite.standard_cases()) > 1500 and len(suite.float_cases()) > 750


def test_all_that_is_listed_fails(suite, failures):
    passing = [name for name in suite.standard_cases() if suite.reason_of(name) and name not in failures]
    assert not passing, f"listed as failing, but they pass: {passing}"
    patterns = [pattern for names in suite.known_failures().values() for pattern in names]
    idle = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in failures)]
    assert not idle, f"listed, but no test has such a name: {idle}"
