"""Hooks of mkdocs: what the site takes from outside docs/, so that the same pages work on GitHub and on the site.

- README.md is the first page; CONTRIBUTING.md, CHANGELOG.md and SECURITY.md are pages of the same names.
- A link from a page to a file or folder of the repository, such as `../pipelines`, leads to a page with its text.
- build/api, the reference that pdoc writes, becomes `api/`.
- commands.md is what `--help` prints of each command.
"""

import posixpath
import re
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
TOP_PAGES = {"README.md": "index.md"} | {name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}
"""Pages outside docs/, and what they are called on the site."""
LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)#\s]+)")
"""The target of a relative link or image, without its anchor."""
CODE = re.compile(r"(```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".json": "json", ".toml": "toml"}


def target_on_site(folder: str, target: str) -> str:
    """Where a link leads on the site, seen from the site's root.

    Args:
        folder: Folder of the linking page in the repository: "" or "docs".
        target: The link as the page has it.
    """
    path = posixpath.normpath(posixpath.join(folder, target))
    if path in TOP_PAGES:
        return TOP_PAGES[path]
    if path.startswith("docs/") and not path.endswith(".py"):  # the site has no scripts but as pages
        return path.removeprefix("docs/")
    return f"source/{path}.md"


def with_site_links(text: str, folder: str) -> str:
    """A page whose links lead to the site's pages; code is left as it is."""
    parts = CODE.split(text)
    for index in range(0, len(parts), 2):  # the odd parts are code
        parts[index] = LINK.sub(lambda match: target_on_site(folder, match[1]), parts[index])
    return "".join(parts)


def source_page(path: str) -> str:
    """A page that shows a file of the repository, or the files of a folder one after the other."""
    place = ROOT / path
    files = sorted(file for file in place.iterdir() if file.suffix in LANGUAGES) if place.is_dir() else [place]
    page = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n"
    for file in files:
        heading = f"\n## {file.name}\n" if place.is_dir() else ""
        page += f"{heading}\n````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}\n````\n"
    return page


def commands_page() -> str:
    """A page with the help of each command."""
    from omniprep.cli.main import COMMANDS, cli

    page = "# Command line\n\nWhat `omniprep COMMAND --help` prints. "
    page += "Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.\n"
    top = click.Context(cli, info_name="omniprep")
    for name in COMMANDS:
        command = cli.get_command(top, name)
        assert command is not None, name
        context = click.Context(command, info_name=name, parent=top, max_content_width=86, terminal_width=86)
        page += f"\n## {name}\n\n````text\n{command.get_help(context)}\n````\n"
    return page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/, pages of linked source files, and the API reference."""
    texts = {name: with_site_links(file.content_string, "docs") for name, file in _pages(files).items()}
    for name, site_name in TOP_PAGES.items():
        if (ROOT / name).exists():
            texts[site_name] = with_site_links((ROOT / name).read_text(encoding="utf-8"), "")
    for text in list(texts.values()):
        for target in LINK.findall(CODE.sub("", text)):
            # A link to what does not exist gets no page, so that mkdocs reports it.
            if target.startswith("source/") and (ROOT / target[len("source/") : -len(".md")]).exists():
                texts[target] = source_page(target[len("source/") : -len(".md")])
    texts["commands.md"] = commands_page()
    for name, text in texts.items():
        if existing := files.get_file_from_path(name):
            files.remove(existing)
        files.append(File.generated(config, name, content=text))
    for path in sorted((ROOT / "build" / "api").rglob("*")):
        if path.is_file():
            name = f"api/{path.relative_to(ROOT / 'build' / 'api').as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def _pages(files: Files) -> dict[str, File]:
    return {file.src_uri: file for file in files.documentation_pages()}
