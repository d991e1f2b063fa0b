"""Parsing of untrusted JSON and YAML with size limits and uniform errors."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
MAX_YAML = 200_000  # characters, about one second of parsing with PyYAML


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases of lists and mappings, whose nesting grows exponentially."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if not isinstance(self.anchors.get(event.anchor), yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, f"*{event.anchor}: write the values out", None)
        return super().compose_node(parent, index)


def parse_json(text: str | bytes) -> Any:
    """json.loads that raises JSONDecodeError for every error, including deep nesting and long numbers."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except UnicodeDecodeError:
        raise json.JSONDecodeError("not UTF-8", "", 0) from None
    except ValueError as error:  # an integer with thousands of digits
        raise json.JSONDecodeError(str(error).partition(";")[0], "", 0) from None


def parse_yaml(text: str) -> Any:
    """yaml.safe_load of at most MAX_YAML characters, without aliases of lists and mappings.

    Raises yaml.YAMLError for every error; its message may have several lines.
    """
    if len(text) > MAX_YAML:
        raise yaml.YAMLError(f"{len(text):,} characters, wanted at most {MAX_YAML:,}")
    try:
        return yaml.load(text, Loader=_Loader)  # nosec B506
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except Exception as error:  # PyYAML's constructors raise other errors, for example for an invalid date
        raise yaml.YAMLError(str(error).partition(";")[0]) from None


def checked(kind: type[T], value: Any) -> T:
    """Convert a JSON value to the dataclass `kind`, checking field types. Raises ValueError, one line."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{where}: {first['msg'].partition(chr(10))[0]}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
