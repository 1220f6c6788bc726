"""What pages are made of: sections, paragraphs, tables; text is escaped."""

import html
from collections.abc import Sequence
from typing import Any

from tfdwd import reporting


def section(title: str, content: str) -> str:
    """A section of a page; its content is HTML."""
    return f"<section><h2>{text(title)}</h2>{content}</section>"


def parts(parts: reporting.Parts) -> str:
    """What a report shows, as `tfdwd.reporting.as_text` does it."""
    return "".join(paragraph(part) if isinstance(part, str) else table(*part) for part in parts)


def paragraph(part: Any) -> str:
    """A paragraph of text."""
    return f"<p>{text(part)}</p>"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that sorts by the column whose head is pressed."""
    head = "".join(
        f'<th scope="col">{f"<button>{text(name)}</button>" if name else ""}</th>'
        for name in headers
    )
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def text(value: object) -> str:
    """Text that commands neither a browser nor a terminal.

    Example:
      >>> text("a < b")
      'a &lt; b'
    """
    return html.escape(reporting.printable(str(value)))


def milliseconds(value: float | None) -> str:
    """A time in ms; empty where it was not measured."""
    return "" if value is None else f"{value:.4f}"
