"""An extension of Griffe: sections of docstrings under the names that it knows."""

import re
from typing import Any

import griffe


class Sections(griffe.Extension):
    """`Example:` means `Examples:`; the arguments of a class without constructor are its fields."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename sections of one docstring."""
        if obj.docstring is None:
            return
        names = {"Example": "Examples"}
        if obj.is_class and "__init__" not in obj.members and not is_dataclass(obj):
            names["Args"] = "Attributes"
        for name, known in names.items():
            text = re.sub(rf"^{name}:$", f"{known}:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = text


def is_dataclass(obj: Any) -> bool:
    """Whether Griffe knows the constructor by itself."""
    return any("dataclass" in str(decorator.value) for decorator in obj.decorators)
