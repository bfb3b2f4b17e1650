"""A generator as data: a list of nodes that every backend reads.

A :class:`Graph` holds named inputs, nodes in execution order and named outputs. It carries no
weights and no code: the ``torch`` module, the C++ engine and every exporter are built from the
same object, so none of them can drift from the others. No node draws random numbers; whatever is
random (noise, latents, dropout masks) is a named input.

Shapes are NCHW. Dimension 0 is always the batch ``Dim("N")``. A dimension is an integer or a
:class:`Dim`: a symbol with a divisor (``H`` must be a multiple of 4, say) and a minimum.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from fastgen import _graph_ops
from fastgen.errors import GraphError

__all__ = ["Dim", "Graph", "Input", "Node"]

Shape = tuple[int, ...]

# Limits that no real generator comes near; they bound the work a hostile file can cause.
MAX_NODES = 10_000
MAX_INPUTS = 64
MAX_JSON_BYTES = 8 << 20
_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
_SYMBOL = re.compile(r"[A-Z][A-Za-z0-9]{0,15}")


@dataclass(frozen=True)
class Dim:
    """A dimension that is known only at run time.

    Args:
        symbol: name such as ``"H"``; equal symbols of one graph must be bound to equal sizes.
        divisor: the size must be a multiple of it.
        minimum: the smallest size.
    """

    symbol: str
    divisor: int = 1
    minimum: int = 1


@dataclass(frozen=True)
class Input:
    """A named input. ``constant`` says that it stays the same over many runs (a style image)."""

    name: str
    shape: tuple[int | Dim, ...]
    constant: bool = False


@dataclass(frozen=True)
class Node:
    """One operation. Its value has the node's name; its weights are ``"<name>.<parameter>"``."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A network as data.

    Args:
        name: the builder's name, e.g. ``"transformer_net"``.
        inputs: named inputs.
        nodes: operations in execution order (a node reads only inputs and earlier nodes).
        outputs: output name -> name of the value.

    Raises:
        GraphError: when anything is malformed; construction always validates.
    """

    name: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: dict[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))
        # Attributes are completed with their defaults, so that equal graphs compare equal.
        nodes = tuple(
            Node(n.name, n.op, tuple(n.inputs), _graph_ops.check_attrs(n.name, n.op, n.attrs))
            for n in self.nodes
        )
        object.__setattr__(self, "nodes", nodes)
        self.validate()

    # ------------------------------------------------------------------ structure

    def validate(self) -> None:
        """Checks names, order, operand counts and shapes.

        Raises:
            GraphError: one line that names the node and what is wrong with it.
        """
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise GraphError(f"graph name {self.name!r} does not match {_NAME.pattern}")
        if not 1 <= len(self.inputs) <= MAX_INPUTS:
            raise GraphError(f"graph has {len(self.inputs)} inputs; 1 to {MAX_INPUTS} are allowed")
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise GraphError(f"graph has {len(self.nodes)} nodes; 1 to {MAX_NODES} are allowed")
        known: set[str] = set()
        for item in self.inputs:
            self._check_name(item.name, known)
            _check_input_shape(item)
        names = {n.name for n in self.nodes}
        for node in self.nodes:
            self._check_name(node.name, known)
            for source in node.inputs:
                if source not in known:
                    # The node itself is in `known` only from here on, so a cycle lands here too.
                    why = "later (a cycle?)" if source in names else "nowhere"
                    raise GraphError(f"node {node.name!r} reads {source!r}, which is defined {why}")
                if source == node.name:
                    raise GraphError(f"node {node.name!r} reads itself")
        if not self.outputs:
            raise GraphError("graph has no outputs")
        for out, value in self.outputs.items():
            if not isinstance(out, str) or not _NAME.fullmatch(out):
                raise GraphError(f"output name {out!r} does not match {_NAME.pattern}")
            if value not in known:
                raise GraphError(f"output {out!r} is the value {value!r}, which does not exist")
        self.infer_shapes(self.smallest_shapes())

    @staticmethod
    def _check_name(name: object, known: set[str]) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise GraphError(f"name {name!r} does not match {_NAME.pattern}")
        if name in known:
            raise GraphError(f"name {name!r} is used twice")
        known.add(name)

    def node(self, name: str) -> Node:
        """Returns the node with this name, or raises ``KeyError``."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def constant_values(self) -> set[str]:
        """Names of the values that depend only on inputs declared constant."""
        constant = {i.name for i in self.inputs if i.constant}
        for node in self.nodes:
            if all(source in constant for source in node.inputs):
                constant.add(node.name)
        return constant

    def part(self, inputs: tuple[str, ...], output: str) -> Graph:
        """The nodes between some values and another one, as a graph of their own.

        Args:
            inputs: values (inputs or nodes) that become the part's inputs, in this order.
            output: the value that becomes the output, under its own name.

        Raises:
            GraphError: an unknown name; an output that depends on an input of the graph that is
                not behind ``inputs``; a value whose size is not fixed.
        """
        if any(not isinstance(d, int) for item in self.inputs for d in item.shape[1:]):
            raise GraphError(f"graph {self.name!r} has inputs of any size and cannot be cut")
        shapes = self.infer_shapes(self.smallest_shapes())
        for name in (*inputs, output):
            if name not in shapes:
                raise GraphError(f"graph {self.name!r} has no value {name!r}")
        constant, needed, nodes = self.constant_values(), {output}, []
        for node in reversed(self.nodes):
            if node.name in needed and node.name not in inputs:
                nodes.append(node)
                needed.update(node.inputs)
        loose = sorted(needed & {i.name for i in self.inputs} - set(inputs))
        if loose:
            raise GraphError(f"{output!r} depends on {loose[0]!r} beside {list(inputs)}")
        cut = tuple(Input(n, (Dim("N"), *shapes[n][1:]), n in constant) for n in inputs)
        return Graph(f"{self.name}_part", cut, tuple(reversed(nodes)), {output: output})

    def stride(self) -> int | None:
        """Pixels by which the picture must move so that every value moves by whole positions.

        Of a network with two convolutions of stride 2 it is 4: a picture that is moved by 4 pixels
        is painted as before, moved by 4 pixels; by 1 it is not.

        Returns:
            None where pictures have one size only, or values no place in the picture (linear
            layers) or places of their own.
        """
        sides = [side for item in self.inputs for side in item.shape[2:]]
        if not all(isinstance(side, Dim) for side in sides):
            return None
        scales = {item.name: Fraction(1) for item in self.inputs if len(item.shape) == 4}
        for node in self.nodes:
            # What else a norm reads has no places.
            sources = node.inputs[:1] if node.op == "norm" else node.inputs
            found, attrs = {scales.get(source) for source in sources}, node.attrs
            placeless = node.op in ("linear", "reshape", "broadcast")
            scale = found.pop()
            if found or scale is None or placeless or attrs.get("kind") == "global_avg":
                return None
            if node.op in ("conv", "pool"):
                scale *= attrs["stride"]
            elif node.op == "conv_transpose":
                scale /= attrs["stride"]
            elif node.op == "upsample":
                scale /= attrs["scale"]
            scales[node.name] = scale
        return math.lcm(*(scale.numerator for scale in scales.values()))

    # ------------------------------------------------------------------ shapes

    def smallest_shapes(self) -> dict[str, Shape]:
        """Input shapes with every symbol at the smallest size that all its uses allow."""
        sizes = self._symbol_minimums()
        return {
            i.name: tuple(d if isinstance(d, int) else sizes[d.symbol] for d in i.shape)
            for i in self.inputs
        }

    def _symbol_minimums(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        divisors: dict[str, int] = {}
        for item in self.inputs:
            for dim in item.shape:
                if isinstance(dim, Dim):
                    known = divisors.setdefault(dim.symbol, dim.divisor)
                    if known != dim.divisor:
                        raise GraphError(
                            f"symbol {dim.symbol!r} has the divisors {known} and {dim.divisor}"
                        )
                    least = -(-dim.minimum // dim.divisor) * dim.divisor
                    sizes[dim.symbol] = max(least, sizes.get(dim.symbol, 1))
        return sizes

    def infer_shapes(self, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of all values.

        Args:
            inputs: input name -> shape, for every input.

        Returns:
            value name -> shape, inputs included.

        Raises:
            GraphError: a missing or unknown input, or a size that does not fit.
        """
        unknown = sorted(set(inputs) - {i.name for i in self.inputs})
        if unknown:
            raise GraphError(
                f"unknown input {unknown[0]!r}; the graph has {[i.name for i in self.inputs]}"
            )
        shapes: dict[str, Shape] = {}
        bound: dict[str, int] = {}
        for item in self.inputs:
            if item.name not in inputs:
                raise GraphError(f"input {item.name!r} is missing")
            shape = tuple(int(d) for d in inputs[item.name])
            _match(item, shape, bound)
            shapes[item.name] = shape
        for node in self.nodes:
            operands = [shapes[s] for s in node.inputs]
            shapes[node.name] = _graph_ops.infer_shape(node.name, node.op, operands, node.attrs)
        return shapes

    def weight_shapes(self) -> dict[str, Shape]:
        """Weight name (``"<node>.<parameter>"``) -> shape, in execution order."""
        shapes = self.infer_shapes(self.smallest_shapes())
        result: dict[str, Shape] = {}
        for node in self.nodes:
            operands = [shapes[s] for s in node.inputs]
            for key, shape in _graph_ops.weight_shapes(node.op, operands, node.attrs).items():
                result[f"{node.name}.{key}"] = shape
        return result

    def parameter_count(self) -> int:
        """Number of stored weights."""
        total = 0
        for shape in self.weight_shapes().values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total

    def multiply_adds(self, inputs: Mapping[str, Shape]) -> int:
        """Multiply-adds of all convolutions and linear layers for these input shapes."""
        shapes = self.infer_shapes(inputs)
        return sum(
            _graph_ops.multiply_adds(n.op, [shapes[s] for s in n.inputs], shapes[n.name], n.attrs)
            for n in self.nodes
        )

    # ------------------------------------------------------------------ JSON

    def to_json(self) -> str:
        """The graph as JSON text with sorted keys; equal graphs give equal text."""
        return json.dumps(
            {
                "name": self.name,
                "inputs": [
                    {
                        "name": i.name,
                        "shape": [_dim_to_json(d) for d in i.shape],
                        "constant": i.constant,
                    }
                    for i in self.inputs
                ],
                "nodes": [
                    {"name": n.name, "op": n.op, "inputs": list(n.inputs), "attrs": n.attrs}
                    for n in self.nodes
                ],
                "outputs": self.outputs,
            },
            sort_keys=True,
            separators=(",", ":"),
        )

    @staticmethod
    def from_json(text: str) -> Graph:
        """Reads a graph from untrusted JSON text.

        Raises:
            GraphError: when the text is not a well-formed graph.
        """
        if len(text) > MAX_JSON_BYTES:
            raise GraphError(f"graph text has {len(text)} bytes; the limit is {MAX_JSON_BYTES}")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GraphError(f"graph is not JSON: {error}") from None
        _require_keys("graph", data, {"name", "inputs", "nodes", "outputs"})
        if not isinstance(data["inputs"], list) or not isinstance(data["nodes"], list):
            raise GraphError("graph: 'inputs' and 'nodes' must be lists")
        if not isinstance(data["outputs"], dict):
            raise GraphError("graph: 'outputs' must be an object")
        if len(data["nodes"]) > MAX_NODES:
            raise GraphError(f"graph has {len(data['nodes'])} nodes; at most {MAX_NODES}")
        inputs = []
        for item in data["inputs"]:
            _require_keys("input", item, {"name", "shape", "constant"})
            if not isinstance(item["shape"], list) or not isinstance(item["constant"], bool):
                raise GraphError("input: 'shape' must be a list and 'constant' a boolean")
            shape = tuple(_dim_from_json(d) for d in item["shape"])
            inputs.append(Input(item["name"], shape, item["constant"]))
        nodes = []
        for item in data["nodes"]:
            _require_keys("node", item, {"name", "op", "inputs", "attrs"})
            sources = item["inputs"]
            if not isinstance(sources, list) or not all(isinstance(s, str) for s in sources):
                raise GraphError(f"node {item['name']!r}: 'inputs' must be a list of names")
            if not isinstance(item["attrs"], dict):
                raise GraphError(f"node {item['name']!r}: 'attrs' must be an object")
            nodes.append(Node(item["name"], item["op"], tuple(sources), item["attrs"]))
        if not all(isinstance(v, str) for v in data["outputs"].values()):
            raise GraphError("graph: every output must name a value")
        return Graph(data["name"], tuple(inputs), tuple(nodes), dict(data["outputs"]))


def _require_keys(what: str, item: object, keys: set[str]) -> None:
    if not isinstance(item, dict):
        raise GraphError(f"{what} must be an object, not {type(item).__name__}")
    missing, unknown = sorted(keys - set(item)), sorted(map(str, set(item) - keys))
    if missing or unknown:
        raise GraphError(f"{what}: missing keys {missing}, unknown keys {unknown}")


def _dim_to_json(dim: int | Dim) -> object:
    if isinstance(dim, int):
        return dim
    return {"symbol": dim.symbol, "divisor": dim.divisor, "minimum": dim.minimum}


def _dim_from_json(item: object) -> int | Dim:
    if isinstance(item, int) and not isinstance(item, bool):
        return item
    if isinstance(item, dict):
        _require_keys("dimension", item, {"symbol", "divisor", "minimum"})
        return Dim(item["symbol"], item["divisor"], item["minimum"])
    raise GraphError(f"dimension must be an integer or an object, not {item!r}")


def _check_input_shape(item: Input) -> None:
    if not isinstance(item.shape, tuple) or len(item.shape) not in (2, 4):
        raise GraphError(f"input {item.name!r}: shape must be (N,F) or (N,C,H,W), not {item.shape}")
    for dim in item.shape:
        if isinstance(dim, Dim):
            if not isinstance(dim.symbol, str) or not _SYMBOL.fullmatch(dim.symbol):
                raise GraphError(f"input {item.name!r}: symbol {dim.symbol!r} is not a name")
            for what, value in (("divisor", dim.divisor), ("minimum", dim.minimum)):
                if type(value) is not int or not 1 <= value <= 4096:
                    raise GraphError(f"input {item.name!r}: {what} {value!r} is outside 1..4096")
        elif type(dim) is not int or not 1 <= dim <= _graph_ops.MAX_SIZE:
            raise GraphError(f"input {item.name!r}: dimension {dim!r} is not a positive size")
    first = item.shape[0]
    if not isinstance(first, Dim) or first.symbol != "N" or first.divisor != 1:
        raise GraphError(f"input {item.name!r}: dimension 0 must be the batch symbol 'N'")
    if not isinstance(item.shape[1], int):
        raise GraphError(f"input {item.name!r}: dimension 1 (channels) must be an integer")


def _match(item: Input, shape: Shape, bound: dict[str, int]) -> None:
    if len(shape) != len(item.shape):
        raise GraphError(f"input {item.name!r}: shape {shape} must have {len(item.shape)} axes")
    for axis, (size, dim) in enumerate(zip(shape, item.shape, strict=True)):
        if isinstance(dim, int):
            if size != dim:
                raise GraphError(f"input {item.name!r}: axis {axis} is {size}, must be {dim}")
            continue
        if size < dim.minimum or size % dim.divisor or size > _graph_ops.MAX_SIZE:
            raise GraphError(
                f"input {item.name!r}: {dim.symbol} is {size}, must be a multiple of "
                f"{dim.divisor} and at least {dim.minimum}; pad the input"
            )
        if bound.setdefault(dim.symbol, size) != size:
            raise GraphError(
                f"input {item.name!r}: {dim.symbol} is {size}, but {bound[dim.symbol]} elsewhere"
            )
