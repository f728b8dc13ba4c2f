"""A reader of docstrings for the site: their «Example:» is the section that mkdocstrings shows as code."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Names the section as mkdocstrings expects it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called with each object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
