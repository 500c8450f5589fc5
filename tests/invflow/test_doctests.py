"""The examples in the documentation of invflow."""

import doctest
import importlib
import pkgutil

import pytest

import invflow


def modules_with_examples():
    names = ["invflow", *(module.name for module in pkgutil.walk_packages(invflow.__path__, "invflow."))]
    modules = [importlib.import_module(name) for name in names if not name.endswith("._C")]
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [module for module in modules if any(test.examples for test in finder.find(module))]


MODULES = modules_with_examples()


def test_there_are_examples():
    assert {"invflow.backends", "invflow.testing"} <= {module.__name__ for module in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples(module):
    assert doctest.testmod(module).failed == 0
