"""MkDocs hook: pages whose Markdown lies outside `docs/`, links that hold in both places, an example of a report."""

from __future__ import annotations

import json
import lzma
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]

#: Markdown of the repository -> its page on the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "search_spaces/README.md": "guides/search_spaces.md",
    "trainables/README.md": "guides/families.md",
    "benchmarks/README.md": "benchmarks/all.md",
    "benchmarks/collapsebench/README.md": "benchmarks/collapsebench.md",
    **{f"trainables/{path.parent.name}/README.md": f"families/{path.parent.name}.md"
       for path in sorted(ROOT.glob("trainables/*/README.md"))},
}
_FENCE = re.compile(r"(^```.*?^```[^\n]*$)", re.S | re.M)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of `PAGES`; the README's place is taken by docs/index.md."""
    for source, page in PAGES.items():
        if page != "index.md":
            files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points links at pages of the site; a link to a file that has no page becomes its text."""
    here = page.file.src_uri
    source = next((name for name, at in PAGES.items() if at == here and at != "index.md"), f"docs/{here}")
    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(lambda match: _link(match, source, here), part) for part in parts[::2]]
    return "".join(parts)


def _link(match: re.Match[str], source: str, page: str) -> str:
    image, text, target = match.groups()
    path, _, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return match.group()
    file = PurePosixPath(os.path.normpath(PurePosixPath(source).parent / path)).as_posix()
    at = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
    if at is None:
        return text if (ROOT / file).exists() else match.group()  # what does not exist, --strict tells of
    relative = os.path.relpath(at, PurePosixPath(page).parent)
    return f"{image}[{text}]({relative}{'#' + anchor if anchor else ''})"


def on_post_build(config: Any) -> None:
    """Adds `example_report.html`, the report of `make demo`'s sweep (docs/example_sweep.jsonl.xz is its journal)."""
    from buttress.analysis.report import report
    from buttress.journal import fold

    with lzma.open(ROOT / "docs" / "example_sweep.jsonl.xz", "rt", encoding="utf-8") as lines:
        page = report(fold(json.loads(line) for line in lines))
    (Path(config.site_dir) / "example_report.html").write_text(page, encoding="utf-8")
