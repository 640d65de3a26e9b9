"""Lets mkdocstrings read our docstrings: cross-references in Sphinx's notation become links, and examples code."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(class|func|meth|mod):`([^`]+)`")
PACKAGE = "fused_rnn"
# What the reference does not show, so that nothing can link to it.
INTERNAL = tuple(
    f"{PACKAGE}.{name}" for name in ("ops", "autograd", "foreign", "modules.masked_weight", "modules.stepping")
)


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object once the package is read, before docstrings are parsed."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Rewrite all docstrings of the package."""
        loader.resolve_aliases(implicit=True)
        self._rewrite(pkg, loader)

    def _rewrite(self, obj: griffe.Object, loader: griffe.GriffeLoader) -> None:
        """Rewrite the docstrings of an object and of everything in it."""
        if obj.docstring is not None:
            text = ROLE.sub(lambda match: self._link(obj, match[1], match[2], loader), obj.docstring.value)
            # "Examples" is the name by which the parser knows a section of code.
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
        for member in obj.members.values():
            if not member.is_alias:
                self._rewrite(member, loader)

    @staticmethod
    def _link(obj: griffe.Object, role: str, name: str, loader: griffe.GriffeLoader) -> str:
        """Return a link to what a docstring of `obj` calls `name`, or the name as code where it is not in the site.

        A method without the name of its class is one of the class in which the docstring is.
        """
        owner = obj if obj.is_class or obj.parent is None else obj.parent
        scope = owner if role == "meth" and "." not in name and owner.is_class else obj.module
        full = name if name.startswith(f"{PACKAGE}.") else f"{scope.path}.{name}"
        target = loader.modules_collection[full]
        if target.is_module and target.name in target.members:  # a function and its module have one name
            target = target.members[target.name]
        path: str = target.canonical_path
        is_internal = path.startswith(INTERNAL) or any(part.startswith("_") for part in path.split("."))
        return f"`{name}`" if is_internal or target.is_module else f"[`{name}`][{path}]"
