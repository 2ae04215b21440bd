"""The structure of the package: imports point one way, and every module has a name of its own."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The packages and top-level modules of danet, lowest layer first. A module may import its own package and lower layers.
LAYERS = (
    ("ops", "utils", "testing"),
    ("detections",),
    ("config", "boxes"),
    ("models",),
    ("checkpoint", "data"),
    ("losses", "distill"),
    ("inference",),
    ("evaluation", "tracking"),
    ("training", "export", "calibration"),
    ("report",),
    ("train", "evaluate", "compare", "detect", "track", "ablate"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
COMMANDS = LAYERS[-1]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / "danet").rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """Modules of danet that a module imports anywhere: at its top, in functions, and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return {name for name in found if name.split(".")[0] == "danet"}


IMPORTS = {module: imports_of(module) for module in MODULES}


def is_command(module: str) -> bool:
    return module.endswith("__main__") or module.split(".")[1:2] in [[name] for name in COMMANDS]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "danet" and not is_command(name)])
def test_imports_point_to_lower_layers(module):
    package = module.split(".")[1]
    for imported in IMPORTS[module]:
        if imported == "danet":  # __version__ and load, which the package offers without importing torch
            continue
        assert not is_command(imported), f"{module} imports the command {imported}"
        other = imported.split(".")[1]
        assert other == package or LEVEL[other] < LEVEL[package] or (other, package) == ("data", "checkpoint"), (
            f"{module} imports {imported}, which is not in a lower layer"
        )


def test_every_package_has_a_layer():
    names = {module.split(".")[1] for module in MODULES if module != "danet"} - {"__main__"}
    assert names <= set(LEVEL)


def test_imports_have_no_cycle():
    # danet/__init__.py loads its public names lazily, so that importing danet itself closes no cycle.
    state: dict[str, str] = {"danet": "done"}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == "done":
            return
        assert module not in path, "import cycle: " + " -> ".join((*path[path.index(module) :], module))
        for imported in sorted(IMPORTS.get(module, ())):
            visit(imported, (*path, module))
        state[module] = "done"

    for module in MODULES:
        visit(module, ())


def test_packages_have_no_cycle():
    arrows = {
        (module.split(".")[1], imported.split(".")[1])
        for module, names in IMPORTS.items()
        for imported in names
        if module != "danet" and imported != "danet" and not is_command(module)
    }
    both = {pair for pair in arrows if pair[0] != pair[1] and pair[::-1] in arrows}
    assert not both


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("danet.ops")])
def test_ops_imports_nothing_but_torch(module):
    foreign = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        foreign |= {name for name in names if not name.startswith(("danet.ops", "torch"))}
    assert {name.split(".")[0] for name in foreign} <= sys.stdlib_module_names | {"danet"}
    assert not {name for name in foreign if name.split(".")[0] == "danet" and name != "danet.ops"}


def test_no_two_modules_share_a_name():
    stems = [
        path.parent.name if path.stem == "__init__" else path.stem
        for path in MODULES.values()
        if path.stem != "__main__" and path != ROOT / "danet/__init__.py"
    ]
    assert [stem for stem, count in Counter(stems).items() if count > 1] == []


def test_package_root_holds_at_most_12_modules():
    assert len(list((ROOT / "danet").glob("*.py"))) <= 12
