"""The sweep file, written again from what the manifest keeps of it."""

import json
import re
from typing import Any

BARE = re.compile(r"[A-Za-z0-9_-]+")


def sweep_to_toml(sweep: dict[str, Any]) -> str:
    """Writes the tables of a sweep as TOML that `tomllib` reads back.

    Args:
      sweep: sections -> tables, as in the manifest. What is None is left out: TOML has
        no word for it. An axis whose points only name the values of the field that it
        is called after is written as a list.
    """
    lines: list[str] = []
    for section, content in sweep.items():
        if section == "exclude":
            for conditions in content:
                lines += ["[[exclude]]", *_pairs(conditions), ""]
        elif section == "axes":
            lines += _axes(content)
        elif isinstance(content, dict):
            if _pairs(content):
                lines += [f"[{_key(section)}]", *_pairs(content), ""]
        elif content is not None:
            raise ValueError(f"sweep section {section!r} is no table: {content!r}")
    return "\n".join(lines)


def _axes(axes: dict[str, Any]) -> list[str]:
    values = {name: _values(name, points) for name, points in axes.items()}
    # The order of the axes is that of nesting. In TOML tables come last, so that one
    # in front of a list has to stay on its line.
    last = max((n for n, name in enumerate(axes) if values[name]), default=-1)
    lines, tables = ["[axes]"], []
    for n, (name, points) in enumerate(axes.items()):
        if values[name]:
            lines.append(f"{_key(name)} = {_value(values[name])}")
        elif n < last:
            lines.append(f"{_key(name)} = {_value(points)}")
        else:
            tables += [f"[axes.{_key(name)}]", *_pairs(points), ""]
    return [*lines, "", *tables]


def _values(name: str, points: Any) -> list[Any]:
    """Lists the values of an axis of one field; none if its points are more."""
    if isinstance(points, (list, tuple)):
        return list(points)
    values = []
    for label, fields in points.items():
        value = fields.get(name)
        named = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        if set(fields) != {name} or not named or str(value) != label:
            return []
        values.append(value)
    return values


def _pairs(table: dict[str, Any]) -> list[str]:
    return [
        f"{_key(name)} = {_value(value)}"
        for name, value in table.items()
        if value is not None
    ]


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else _text(name)


def _text(text: str) -> str:
    # JSON's strings are TOML's, but for one character that TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(_pairs(value))
        return f"{{ {inner} }}" if inner else "{}"
    raise ValueError(f"TOML has no value for {value!r}")
