"""What pages are made of: sections, paragraphs, tables; text is escaped."""

import html
from collections.abc import Sequence
from typing import Any

from tfdwd import reporting


def section(title: str, content: str) -> str:
    return f"<section><h2>{text(title)}</h2>{content}</section>"


def parts(parts: reporting.Parts) -> str:
    return "".join(paragraph(part) if isinstance(part, str) else table(*part) for part in parts)


def paragraph(part: Any) -> str:
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
    return html.escape(reporting.printable(str(value)))


def milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
