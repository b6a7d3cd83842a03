"""Mutations: what can be changed in a module, one place at a time.

A mutation changes an operator, a comparison, a constant, two arguments of a call, a
condition, or one random key for another; or it drops a call such as `stop_gradient`.
`mutate.py` runs them. Left out is what cannot change a result: whether a `zip` is
strict, and the order of two arguments of `max` and the like.
"""

import ast
import collections
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
# Calls that give something like their first argument.
DROPPED = {
    "stop_gradient",
    "derive_rng",
    "fold_in",
    "abs",
    "clip",
    "exp",
    "flip",
    "log",
    "maximum",
    "minimum",
    "nan_to_num",
    "relu",
    "roll",
    "sort",
    "sqrt",
    "square",
    "tanh",
    "sigmoid",
}
# Calls whose first two arguments may change places.
SYMMETRIC = {"max", "maximum", "min", "minimum", "vdot"}


class Mutation(NamedTuple):
    """One change: `after` in place of the bytes start to end of a file."""

    path: str  # from the root
    line: int
    start: int
    end: int
    before: str
    after: str
    context: str  # the line as it was
    id: str  # the same wherever the line moves

    def text(self) -> str:
        change = f"{self.before} -> {self.after}"
        return f"{self.path}:{self.line}: {change} in `{self.context}`"


def mutations_of(path: str, source: bytes) -> list[Mutation]:
    """Lists all mutations of a file, in order."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        first = starts[node.lineno - 1] + node.col_offset
        return first, starts[node.end_lineno - 1] + node.end_col_offset

    def text(node: ast.AST) -> str:
        return source[slice(*span(node))].decode()

    found = {}
    for node in _code(ast.parse(source)):
        for start, end, after in _changes(node, span, text, source):
            before = source[start:end].decode()
            if "\n" in before or before == after:
                continue
            line = source[:start].count(b"\n")
            context = lines[line].decode().strip()
            place = (path, context, source[starts[line] : start].strip(), before, after)
            found[start, end, after] = (
                (path, line + 1, start, end, before, after),
                place,
            )
    made, alike = [], collections.Counter()
    for key in sorted(found):
        change, place = found[key]
        alike[place] += 1
        name = hashlib.sha256(repr((*place, alike[place])).encode()).hexdigest()[:12]
        made.append(Mutation(*change, place[1], name))
    return made


def _code(node: ast.AST):
    """Walks what runs: no annotations, no texts, no words of errors."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(
                child, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)
            ):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue
            yield child
            yield from _code(child)


def _changes(node: ast.AST, span, text, source: bytes):
    """Yields (start, end, replacement) of one node."""

    def between(left: ast.AST, right: ast.AST, kind: type):
        if kind in OPERATORS:
            symbol, other = OPERATORS[kind]
            start, end = span(left)[1], span(right)[0]
            # Not the beginning or end of a longer operator.
            pattern = rf"(?<![*/<>=!\w]){re.escape(symbol)}(?![*/=\w])"
            place = re.search(pattern.encode(), source[start:end])
            if place:
                yield start + place.start(), start + place.end(), other

    match node:
        case ast.BinOp():
            yield from between(node.left, node.right, type(node.op))
        case ast.Compare():
            sides = [node.left, *node.comparators]
            for left, right, kind in zip(sides, sides[1:], node.ops, strict=False):
                yield from between(left, right, type(kind))
        case ast.BoolOp():
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from between(left, right, type(node.op))
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield *span(node), text(node.operand)
        case ast.If() | ast.IfExp() | ast.While():
            yield *span(node.test), f"(not ({text(node.test)}))"
        case ast.Expr(value=ast.Call()):
            yield *span(node), "pass"
        case ast.FunctionDef():
            yield from _other_random_keys(node, span)
        case ast.Constant(value=bool()):
            yield *span(node), str(not node.value)
        case ast.Constant(value=int()):
            yield *span(node), str(node.value + 1)
        case ast.Constant(value=float()):
            yield *span(node), repr(2 * node.value or 1.0)
        case ast.Call():
            yield from _changes_of_call(node, span, text)


def _changes_of_call(node: ast.Call, span, text):
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    given = node.args
    if any(isinstance(argument, ast.Starred) for argument in given):
        return
    if len(given) > 1 and name not in SYMMETRIC:
        yield (
            span(given[0])[0],
            span(given[1])[1],
            f"{text(given[1])}, {text(given[0])}",
        )
    if name == "where" and len(given) == 3:
        yield *span(node), text(given[1])
        yield *span(node), text(given[2])
    if name == "fold_in" and len(given) == 2:
        yield *span(given[1]), "0"
    if name in DROPPED and given:
        yield *span(node), text(given[0])


def _other_random_keys(node: ast.FunctionDef, span):
    """Yields, for each use of a random key in a function, those that it has by then."""
    own, left = [], list(node.body)
    while left:
        part = left.pop()
        if not isinstance(part, (ast.FunctionDef, ast.Lambda)):
            own.append(part)
            left += ast.iter_child_nodes(part)
    keys = [n for n in own if isinstance(n, ast.Name) and _is_random_key(n.id)]
    since = {a.arg: 0 for a in node.args.args if _is_random_key(a.arg)}
    for key in sorted(keys, key=lambda key: key.lineno, reverse=True):
        if isinstance(key.ctx, ast.Store):
            since[key.id] = key.lineno
    for key in keys:
        if isinstance(key.ctx, ast.Load):
            for other in sorted(since):
                if other != key.id and since[other] < key.lineno:
                    yield *span(key), other


def _is_random_key(name: str) -> bool:
    return name == "rng" or name.startswith("rng_")


def list_mutations(root: Path, modules) -> list[Mutation]:
    """Lists all mutations of some files and folders."""
    paths = []
    for module in modules:
        place = root / module
        paths += sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return [
        mutation
        for path in dict.fromkeys(paths)
        for mutation in mutations_of(
            path.relative_to(root).as_posix(), path.read_bytes()
        )
    ]


def sample(mutations: list[Mutation], count: int, seed: int) -> list[Mutation]:
    """Draws mutations; a larger count begins with those of a smaller one.

    Each has a place of its own in the order, so that a change of one line of code
    leaves the sample as it is but for that line.
    """

    def place(mutation: Mutation) -> str:
        return hashlib.sha256(f"{seed} {mutation.id}".encode()).hexdigest()

    return sorted(mutations, key=place)[:count]
