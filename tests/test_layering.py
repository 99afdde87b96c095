"""Imports run one way: cli -> engine -> (methods, data, evaluate) -> nn -> ops -> (reference, kernels)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "avfast"

# The op layer: ops and what chooses, loads and describes their backends.
OPS = {"ops", "backends", "_library", "env", "reference", "kernels", "errors"}
# Pictures from features: the networks and what trains them.
GAN = {"generator", "discriminator", "diff_augment", "gan_losses", "icgan"}
ALLOWED = {
    "printable": set(),
    "errors": {"printable"},
    "terminal": set(),
    "reference": {"errors"},
    "kernels": {"errors"},
    **dict.fromkeys(("env", "_library", "backends", "ops"), OPS),
    "functional": OPS,
    "nn": OPS,
    "compat": {"nn", *OPS},
    "testing": {"nn", *OPS},
    "data": {"nn", "ops", "env", "terminal", "printable", "errors"},
    "encoders": {"vit", "nn", "ops", "errors"},
    "vit": {"nn", "ops", "errors"},
    "weights": {"errors"},
    "generator": {"nn", "ops", "errors"},
    "discriminator": {"generator", "nn", "ops", "errors"},
    "diff_augment": {"ops", "errors"},
    "gan_losses": {"nn", "ops", "errors"},
    "icgan": {"generator", "nn", "ops", "errors"},
    "methods": {"encoders", "vit", "weights", *GAN, "nn", "ops", "errors"},
    "evaluate": {"nn", "ops", "errors"},
    "engine": {
        "methods",
        "data",
        "evaluate",
        "encoders",
        "generator",
        "weights",
        "nn",
        "ops",
        "benches",
        "env",
        "terminal",
        "printable",
        "errors",
    },
    "cli": {"engine", "methods", "data", "nn", "env", "testing", "benches", "printable", "errors"},
    "__main__": {"cli"},
    "__init__": {"nn", *OPS},
}
"""What each part of the package may import from the rest of it; a part not named here is a mistake."""

LAZY = {"av", "accelerate", "rich", "matplotlib", "sklearn", "transformers", "safetensors", "jsonargparse",
        "yaml", "tensorboard", "triton", "kornia", "PIL"}  # fmt: skip
NEVER = {"torchvision", "torchaudio", "timm"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path, tree: ast.AST) -> list[tuple[str, int]]:
    """Absolute dotted names of all imports of a file, resolved, with their line."""
    package = ["avfast", *path.relative_to(PACKAGE).parent.parts]
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
    return names


def test_the_parser_of_this_test_resolves_relative_imports():
    tree = ast.parse("from ..ops import x\nfrom . import y\nimport avfast.data.media")
    found = imported_names(PACKAGE / "nn" / "some.py", tree)
    assert [name for name, _ in found] == ["avfast.ops.x", "avfast.nn.y", "avfast.data.media"]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = part_of(path)
    assert part in ALLOWED, f"{path.name}: a new part of the package needs its place in ALLOWED"
    tree = ast.parse(path.read_text())
    # Names for annotations only are not imported at run time.
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for name, line in imported_names(path, tree):
        top, _, rest = name.partition(".")
        assert top not in NEVER, f"{path}:{line} imports {name}"
        if top == "avfast" and rest:
            target = rest.split(".")[0]
            # `import avfast; avfast.info_nce` style names are re-exports of nn and ops.
            if target in ALLOWED and target != part:
                assert target in ALLOWED[part], f"{path}:{line}: {part} must not import {target} ({name})"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_libraries_are_imported_inside_functions(path):
    tree = ast.parse(path.read_text())
    for node in tree.body:
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        assert not LAZY & {m.split(".")[0] for m in modules}, f"{path}:{node.lineno} imports {modules} eagerly"
