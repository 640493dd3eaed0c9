"""Whatever is decoded was made ready for it at its definition: see `upwell.decodable`."""

import ast
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec

import upwell

ROOT = Path(upwell.__file__).parent
TREES = {
    ".".join(("upwell", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): ast.parse(
        path.read_text()
    )
    for path in sorted(ROOT.rglob("*.py"))
    if "testing" not in path.parts
}


def test_every_type_that_is_decoded_is_ready() -> None:
    ready = {
        (module, node.name)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "decodable" in map(ast.unparse, node.decorator_list)
    }
    decoded = {(kind.__module__, kind.__qualname__) for kind in _decoded()}
    assert {("upwell.engine.catalog", "Table"), ("upwell.feeds.letters", "DeadLetter")} <= decoded
    assert sorted(decoded - ready) == []


def _decoded() -> Iterator[type]:
    """Yield the types that are given to `decode`, or to a function of ours that gives its argument to it."""
    givers = {
        function.name
        for tree in TREES.values()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for kind in _asked(function)
        if ast.unparse(kind) in {each.arg for each in function.args.args}
    }
    for module, tree in TREES.items():
        asked = _asked(tree)
        for call in _calls(tree):
            if ast.unparse(call.func).split(".")[-1] in givers:
                asked += call.args
        for kind in asked:
            yield from _own(_value(module, kind))


def _asked(tree: ast.AST) -> list[ast.expr]:
    return [
        keyword.value
        for call in _calls(tree)
        if ast.unparse(call.func).endswith("decode")
        for keyword in call.keywords
        if keyword.arg == "type"
    ]


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _value(module: str, expression: ast.expr) -> Any:
    if not isinstance(expression, ast.Name | ast.Attribute | ast.Subscript):
        return None
    try:
        return eval(ast.unparse(expression), vars(importlib.import_module(module)))
    except (NameError, AttributeError):
        return None  # a local name: the calls of its function tell


def _own(kind: Any) -> Iterator[type]:
    """Yield the structs and dataclasses in a type."""
    if isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind)):
        yield kind
    for inner in get_args(kind):
        yield from _own(inner)
