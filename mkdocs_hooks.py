"""Pages of the site that are files of the repository's root: README.md is its first page."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "LICENSE": "licence.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, with links as they are within docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text().replace("](docs/", "](")
        for name, place in PAGES.items():
            text = text.replace(f"]({name})", f"]({place})")
        files.append(File.generated(config, page, content=text))
    return files


def on_serve(server: object, config: MkDocsConfig, **unused: object) -> None:
    """Watches the files while the site is written."""
    for source in PAGES:
        server.watch(str(ROOT / source))  # type: ignore[attr-defined]
