"""Pages in HTML that need nothing beside them, from templates that share one head. jinja2"""

from __future__ import annotations

from typing import Any

import jinja2


def html(template: str, *, title: str, **values: Any) -> str:
    """Return a page; what is put into it is escaped.

    Args:
        template: file of `data/report`.
        title: of the page, before what kind of page it is.
        values: that the template names; each must be there.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined,
        loader=jinja2.PackageLoader("tf_infer", "data/report"))
    return environment.get_template(template).render(title=title, **values)
