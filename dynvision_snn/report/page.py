"""One self-contained HTML page: tables and figures, for light and dark screens, wide and narrow.

Nothing is loaded: styles and figures are inside, so the page opens without a network and will
still open in years.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from dynvision_snn.errors import MissingExtraError
from dynvision_snn.report.markup import to_html
from dynvision_snn.report.tables import Grid

__all__ = ["Picture", "Section", "render"]


@dataclass(frozen=True)
class Picture:
    """A figure in two widths, of which the screen's shows.

    Attributes:
        wide: as SVG, from `to_svg`.
        narrow: likewise, for phones.
        caption: what it shows.
    """

    wide: str
    narrow: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading.

    Attributes:
        title: its heading.
        text: paragraphs.
        tables: from `lay_out`.
        pictures: figures.
        folded: whether it is closed until it is asked for.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Grid] = ()
    pictures: Sequence[Picture] = ()
    folded: bool = False


def render(
    title: str, lead: Sequence[str], warnings: Sequence[str], sections: Sequence[Section]
) -> str:
    """The page as text; whatever is in a title, name or note is shown as it is.

    Args:
        title: of the page.
        lead: paragraphs below it.
        warnings: what must be known before anything else is read.
        sections: the rest.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "A report in HTML") from error
    source = resources.files("dynvision_snn.report").joinpath("page.html.jinja").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # What `to_html` and `to_svg` give is markup; all else is text, and escaped.
    environment.filters["table"] = to_html
    return environment.from_string(source).render(
        title=title, lead=lead, warnings=warnings, sections=sections
    )
