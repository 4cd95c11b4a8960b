"""What the site has beyond docs/: pages that are other files of the repository, and players for links to audio."""

from __future__ import annotations

import json
import os.path
import re
from functools import partial
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "licence.md",
    "CITATION.cff": "citation.cff",
    "requirements-losses.txt": "requirements-losses.txt",
    "requirements-judges.txt": "requirements-judges.txt",
}
LINK = re.compile(r"(?<=\]\()([^)#:]+)(?=[)#])")
AUDIO_LINK = re.compile(r'<a href="([^"]+\.(?:ogg|mp3|flac|wav))">.*?</a>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of `PAGES`; their links are to the site's pages."""
    for source, place in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if place.endswith(".md"):
            text = LINK.sub(partial(_within_site, source), text)
        files.append(File.generated(config, place, content=text))
    files.append(File.generated(config, "notebook.md", content=_notebook(ROOT / "docs" / "continue.ipynb")))
    return files


def _notebook(path: Path) -> str:
    """The cells of a notebook as a page, with a link to the file."""
    text = {"markdown": "{}\n\n", "code": "```python\n{}\n```\n\n"}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    page = "".join(text[cell["cell_type"]].format("".join(cell["source"])) for cell in cells)
    return f"{page}To run it: [{path.name}]({path.name}).\n"


def _within_site(source: str, link: re.Match[str]) -> str:
    """Where a file that `source` links to is on the site: in `PAGES`, or in docs/."""
    path = os.path.normpath(PurePosixPath(source).parent / link[0])
    return PAGES.get(path, path.removeprefix("docs/"))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts a player below every link to an audio file; `::` before code, as docstrings have it, becomes a colon."""
    html = AUDIO_LINK.sub(r'\g<0> <audio controls preload="metadata" src="\1"></audio>', html)
    return html.replace("::</p>", ":</p>")
