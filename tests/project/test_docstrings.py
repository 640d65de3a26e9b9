"""References in docstrings, such as :func:`fused_rnn.convert`: each leads to something."""

import ast
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fused_rnn"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)
OTHERS = ("torch", "onnx", "onnxscript", "keras", "numpy")
ROLE = re.compile(r":(class|func|meth|mod):`([^`]+)`")


def references(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield the enclosing class, or "", and the role and the name of each reference in the docstrings of a module."""

    def visit(node: ast.AST, owner: str) -> Iterator[tuple[str, str, str]]:
        if isinstance(node, ast.ClassDef):
            owner = node.name
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            for role, name in ROLE.findall(ast.get_docstring(node) or ""):
                yield owner, role, name
        for child in ast.iter_child_nodes(node):
            yield from visit(child, owner)

    return visit(ast.parse(source), "")


def leads_somewhere(module: str, owner: str, role: str, name: str) -> bool:
    """Whether a name exists: in the package, in the class of a method, or else in the module of the docstring.

    Other packages are not in the reference, so nothing leads to them.
    """
    if name.partition(".")[0] in OTHERS:
        return False
    inner = f"{owner}.{name}" if role == "meth" and owner and "." not in name else name
    # resolve_name takes what is before a colon for a module, and otherwise imports as many parts as it can.
    full = name if name.startswith("fused_rnn.") else f"{module}:{inner}"
    try:
        pkgutil.resolve_name(full)
    except AttributeError:
        return False
    return True


@pytest.mark.parametrize("module", MODULES)
def test_references_lead_somewhere(module: str) -> None:
    path = PACKAGE.parent / Path(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    assert [name for owner, role, name in references(source) if not leads_somewhere(module, owner, role, name)] == []


def test_what_is_missing_is_seen() -> None:
    source = 'class A:\n    def b(self):\n        """See :meth:`c` and :func:`fused_rnn.convert`."""\n'
    assert list(references(source)) == [("A", "meth", "c"), ("A", "func", "fused_rnn.convert")]
    assert leads_somewhere("fused_rnn.modules.lstm", "LSTM", "meth", "forward")
    assert not leads_somewhere("fused_rnn.modules.lstm", "LSTM", "meth", "backwards")
    assert not leads_somewhere("fused_rnn.models.pixelcnn", "PixelCNN", "class", "GatedPixelCNN")
    assert not leads_somewhere("fused_rnn.modules.lstm", "LSTM", "class", "torch.nn.LSTM")
    assert leads_somewhere("fused_rnn.models.pixelcnn", "PixelCNN", "class", "fused_rnn.models.GatedPixelCNN")
