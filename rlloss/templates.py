"""Pages from templates. What is put in is escaped, unless the template says ``safe``; what is missing is an error."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(package: str, folder: str) -> Environment:
    """The templates in a folder of a package."""
    return Environment(
        loader=PackageLoader(package, folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
