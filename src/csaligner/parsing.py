"""JSON and YAML from strangers: whatever is wrong with a text, parsing it raises one kind of error and ends soon."""

from __future__ import annotations

import json
from typing import Any

import yaml

MAX_YAML = 200_000  # characters: PyYAML reads about as many in a second


class _Loader(yaml.SafeLoader):
    """Plain values only, and every one written out: lists of aliases of lists of aliases grow without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            if not isinstance(self.anchors.get(event.anchor), yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, f"*{event.anchor}: write the values out", None)
        return super().compose_node(parent, index)


def parse_json(text: str | bytes) -> Any:
    """json.loads; every error, too deep nesting and too long numbers included, is a JSONDecodeError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except UnicodeDecodeError:
        raise json.JSONDecodeError("not UTF-8", "", 0) from None
    except ValueError as error:  # a number of thousands of digits
        raise json.JSONDecodeError(str(error).partition(";")[0], "", 0) from None


def parse_yaml(text: str) -> Any:
    """yaml.safe_load of at most MAX_YAML characters without aliases of lists and mappings.

    Raises yaml.YAMLError, of one line or several, for everything that is wrong.
    """
    if len(text) > MAX_YAML:
        raise yaml.YAMLError(f"{len(text):,} characters, wanted at most {MAX_YAML:,}")
    try:
        return yaml.load(text, Loader=_Loader)  # nosec B506 (a SafeLoader)
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except Exception as error:  # PyYAML's constructors let Python's own errors through: an impossible date, say
        raise yaml.YAMLError(str(error).partition(";")[0]) from None
