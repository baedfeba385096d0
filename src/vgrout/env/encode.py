"""Values as plain data: how a returned value crosses from the sandbox to the trusted process, as JSON.

null, booleans, finite and non-finite floats (`NaN`, `Infinity`), strings and lists are themselves; integers too, unless
they have more digits than Python prints. The rest is tagged: {"i": hex} huge integer, {"t": items} tuple, {"s": items}
set, {"z": items} frozenset, {"d": [[key, value], ...]} dict, {"L": values} linked list, {"T": nodes} binary tree in level
order, a node being [value] and a gap null. Only exact built-in types count (and the dicts of `collections`): an object
with its own idea of equality is not data. Runs inside the child; imports the standard library only.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

_SCALARS = frozenset({int, float, str, bool, type(None)})
_DICTS = frozenset({dict, OrderedDict, defaultdict, Counter})
# What json.dumps uses, made once: the data below is a tree, so there is no need to look for cycles.
_chunks = vars(json.encoder)["c_make_encoder"](
    None, None, json.encoder.encode_basestring_ascii, None, ": ", ", ", False, False, True
)


class Unrepresentable(Exception):
    """The value is not plain data."""


class Oversize(Exception):
    """The value is larger or deeper than the limits allow."""


def encode(value: object, kind: str, max_bytes: int, max_depth: int) -> str:
    """The value as one JSON text without newlines. `kind`: "value", "list" (linked list) or "tree" (binary tree).

    Raises Unrepresentable or Oversize; AttributeError where a node lacks its fields.
    """
    try:
        data = value if kind == "value" and type(value) in _SCALARS else _data(value, kind, max_bytes, max_depth)
        text = "".join(_chunks(data, 0))
    except ValueError:  # an integer with more digits than Python prints
        text = "".join(_chunks(_data(value, kind, max_bytes, max_depth, hexadecimal=True), 0))
    if len(text) > max_bytes:
        raise Oversize
    return text


def _data(value: object, kind: str, max_bytes: int, max_depth: int, *, hexadecimal: bool = False) -> object:
    encoder = _Encoder(max_bytes // 2, max_depth, hexadecimal)
    return {"value": encoder.plain, "list": encoder.linked_list, "tree": encoder.tree}[kind](value)


class _Encoder:
    """Turns a value into JSON-able data, counting elements so that shared structure cannot blow up."""

    def __init__(self, max_elements: int, max_depth: int, hexadecimal: bool = False):
        self.left = max_elements
        self.depth_left = max_depth
        self.hexadecimal = hexadecimal

    def plain(self, value: Any) -> object:
        kind = type(value)
        if kind in _SCALARS:
            return {"i": hex(value)} if self.hexadecimal and kind is int else value
        if kind is list:
            return self.items(value)
        if kind is tuple:
            return {"t": self.items(value)}
        if kind is set or kind is frozenset:
            return {"s" if kind is set else "z": self.items(value)}
        if kind in _DICTS:
            return {"d": [self.items(pair) for pair in dict.items(value)]}
        raise Unrepresentable

    def items(self, values) -> list:
        self.left -= len(values)
        if self.left < 0 or self.depth_left <= 0:
            raise Oversize
        if not self.hexadecimal and _SCALARS.issuperset(map(type, values)):
            return list(values)
        self.depth_left -= 1
        data = [self.plain(value) for value in values]
        self.depth_left += 1
        return data

    def linked_list(self, node) -> object:
        values = []
        while node is not None:
            values.append(self.plain(node.val))
            node = node.next
            self.count()
        return {"L": values}

    def tree(self, root) -> object:
        nodes, waiting = [], deque([root])
        while waiting:
            node = waiting.popleft()
            self.count()
            if node is None:
                nodes.append(None)
                continue
            nodes.append([self.plain(node.val)])
            waiting.append(node.left)
            waiting.append(node.right)
        while nodes and nodes[-1] is None:
            nodes.pop()
        return {"T": nodes}

    def count(self) -> None:
        """One more node; a cycle ends here."""
        self.left -= 1
        if self.left < 0:
            raise Oversize
