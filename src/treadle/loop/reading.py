"""What a callback does to the learner, as far as its source shows."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from treadle.loop.events import LOOP_STATE, Callback


class Reading(ast.NodeVisitor):
    """What a callback's method does to the learner, as far as its source shows, with the methods of
    its own that it calls."""

    def __init__(self, cls: type[Callback]) -> None:
        self.cls = cls
        self.changed: set[str] = set()
        self.raised: set[str] = set()
        self._read: set[Any] = set()
        self._me = "self"
        self._learn: set[str] = set()  # local names of the learner

    def read(self, method: Any) -> None:
        """Read one method or function; its first argument is the callback."""
        function = inspect.unwrap(getattr(method, "__func__", method))
        if function in self._read:
            return
        self._read.add(function)
        tree = _parsed(function)
        args = tree.args.posonlyargs + tree.args.args
        before = self._me, self._learn
        self._me, self._learn = args[0].arg if args else "self", set()
        for part in tree.body if isinstance(tree.body, list) else [tree.body]:
            self.visit(part)
        self._me, self._learn = before

    def visit_Assign(self, node: ast.Assign) -> None:
        if self._is_learn(node.value):
            self._learn |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not isinstance(node.ctx, ast.Load):
            if self._is_learn(node.value):
                self.changed.add(node.attr)
            elif node.attr == "grad":
                self.changed.add("gradients")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._note_state(node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        words = [ast.unparse(part) for part in (node.func, *node.args)]
        for i in range(len(words) - 2):  # also as setattr given to another function
            if words[i] == "setattr" and self._is_learn(node.args[i]):
                self.changed.add(words[i + 2].strip("'\""))
        if isinstance(node.func, ast.Attribute):
            self._visit_method(node.func)
        elif isinstance(node.func, ast.Name) and "grad" in words[0] and words[0].endswith("_"):
            self.changed.add("gradients")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if isinstance(error, ast.Name) and error.id.startswith("Cancel"):
            self.raised.add(error.id)
        self.generic_visit(node)

    def _visit_method(self, method: ast.Attribute) -> None:
        name, owner = method.attr, method.value
        if isinstance(owner, ast.Name) and owner.id == self._me:
            own = getattr(self.cls, name, None)
            if inspect.isfunction(own):
                self.read(own)
        elif ast.unparse(owner) == "super()":
            above = next((c for c in self.cls.__mro__[1:] if name in vars(c)), None)
            if above is not None:
                self.read(vars(above)[name])
        elif name.startswith("set_hyper"):
            self.changed.add("hyper-parameters")
        elif name.endswith("_") and not name.endswith("__"):
            self._note_state(owner)

    def _note_state(self, node: ast.AST) -> None:
        """Note what is changed in place, if `node` is of the loop's state, or a gradient."""
        if isinstance(node, ast.Attribute):
            mine = isinstance(node.value, ast.Name) and node.value.id == self._me
            if node.attr == "grad":
                self.changed.add("gradients")
            elif node.attr in LOOP_STATE and (mine or self._is_learn(node.value)):
                self.changed.add(node.attr)

    def _is_learn(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self._learn
        return ast.unparse(node) == f"{self._me}.learn"


def _parsed(function: Any) -> ast.FunctionDef | ast.Lambda:
    """The function's node. A lambda's source is the statement that it stands in: so is its tree."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    kind = ast.Lambda if function.__name__ == "<lambda>" else ast.FunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kind):
            return node
    raise SyntaxError
