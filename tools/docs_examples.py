"""Lets the documentation site show docstring examples as code, however they are introduced."""

import griffe


class DocstringExamples(griffe.Extension):
    """Turns `Example:` sections and bare `>>>` paragraphs into the `Examples:` section that is rendered."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of one object before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = with_example_sections(obj.docstring.value)


def with_example_sections(text: str) -> str:
    """The docstring with every example under an `Examples:` heading.

    Args:
        text: a docstring without its common indentation.

    Returns:
        The same docstring; only headings and indentation change.
    """
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if not line.strip():
            inside = False
        elif line.startswith(">>>") and not inside:
            inside = True
            lines.append("Examples:")
        if line.rstrip() == "Example:":
            line = "Examples:"
        lines.append("    " + line if inside else line)
    return "\n".join(lines)
