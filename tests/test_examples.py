"""Docstrings: their examples run, and everything that users import has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import danet

MODULES = [
    "danet",
    *sorted(
        module.name
        for module in pkgutil.walk_packages(danet.__path__, "danet.")
        if not module.name.endswith(("__main__", "libdanet", "libdanet_cuda"))  # kernels are not Python modules
    ),
]
PUBLIC = ("danet", "danet.ops", "danet.models", "danet.losses", "danet.distill", "danet.evaluation", "danet.export")


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module_run(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)  # an example may write files
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(module, optionflags=flags, extraglobs={"getfixture": request.getfixturevalue})
    assert failed == 0


def public_objects() -> list:
    found = []
    for package in PUBLIC:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found.append(pytest.param(value, id=f"{package}.{name}"))
    return found


@pytest.mark.parametrize("value", public_objects())
def test_public_object_has_an_example(value):
    assert ">>> " in (inspect.getdoc(value) or "")
