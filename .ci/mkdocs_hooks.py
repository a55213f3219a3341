"""Hook of mkdocs: files outside docs/ that a page links to become part of the site, and README.md its first page.

A link to a file that does not exist ends the build.
"""

import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
OUTSIDE: Final = re.compile(r"\]\(\.\./([^)#\s]+)")
BESIDE: Final = re.compile(r"\]\((?=[\w.-]+(?:/[\w.-]+)*[)#])")
"""Beginning of a link of README.md to a file of the repository."""
COPIED: Final = "repository"
"""Folder of the site that such files are copied to; a Markdown file is shown as its text."""


def _copied(path: str) -> str:
    """Place in the site of a file of the repository."""
    return f"{COPIED}/{path}.txt" if path.endswith(".md") else f"{COPIED}/{path}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md, and every linked file that lies outside docs/."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    content = BESIDE.sub("](../", readme).replace("](../docs/", "](")
    files.append(File.generated(config, "index.md", content=content))
    linked = {path for page in files.documentation_pages() for path in OUTSIDE.findall(page.content_string)}
    for path in sorted(linked):
        source = ROOT / path
        if not source.is_file():
            raise PluginError(f"docs/ link to {path}, which does not exist")
        files.append(File.generated(config, _copied(path), content=source.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files outside docs/ at their copies."""
    return OUTSIDE.sub(lambda found: f"]({_copied(found.group(1))}", markdown)
