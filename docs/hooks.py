"""What the site needs beyond the pages in docs/.

The reference lists what a package exports: a line `::: every fused_rnn.functional` stands for an entry for each name
that the package imports. Without it mkdocstrings would take `fused_rnn.functional.lstm` for the module, not for the
function.

Some pages and pictures are outside docs/. A page links to them by a path that is right in the repository, such as
`../benchmarks/results/picture.png`. In the site such a file has its path in the repository, so links are rewritten.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)]*)?\)")
# A geometric mean with the worst case in brackets, which should not be broken into two lines.
RATIO = re.compile(r"(\d\.\d+x(?:\*\*)?) \(")
EVERY = re.compile(r"^::: every (\S+)$", re.MULTILINE)


def in_repository(address: str) -> str:
    """Return the path in the repository of a file of the site."""
    return address if (ROOT / address).exists() and not (ROOT / "docs" / address).exists() else f"docs/{address}"


def in_site(path: str) -> str:
    """Return the address in the site of a file of the repository."""
    return path.removeprefix("docs/")


def targets(path: str) -> list[str]:
    """Return the paths in the repository that a page of the repository links to."""
    text = (ROOT / path).read_text()
    return [posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2])) for match in LINK.finditer(text)]


def exported(package: str) -> list[str]:
    """Return the full names of what a package exports, with the modules that define them."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    return [
        f"{node.module}.{alias.name}" for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/, and what all pages link to there."""
    pages = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    linked = [target for page in pages for target in targets(page) if (ROOT / target).is_file()]
    for path in sorted({*PAGES, *linked}):
        if not path.startswith("docs/"):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite the links between docs/ and the rest, keep each ratio on one line, and list what packages export."""
    here = in_repository(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[2]))
        address = posixpath.relpath(in_site(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{address}{match[3] or ''})"

    def listed(match: re.Match[str]) -> str:
        return "\n\n".join(f"::: {name}" for name in exported(match[1]))

    return EVERY.sub(listed, RATIO.sub(r"\1&nbsp;(", LINK.sub(rewritten, markdown)))
