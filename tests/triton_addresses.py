"""What Triton kernels multiply to make addresses, read from their intermediate code.

An index of 32 bits times a stride of 32 bits wraps round in a tensor of more than 2^31 elements, and no small test
shows it. So: every product of 32 bits of which an address is made, neither side of which is a constant.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

import aot_child

# What makes an index of others. What is loaded or compared is not followed.
FOLLOWED = re.compile(
    r"(scf|arith\.(add|sub|mul|ext|trunc|div|rem|min|max|ceildiv|floordiv|select|shl|shr|and|or)|"
    r"tt\.(splat|expand_dims|broadcast|trans|reshape))"
)
VALUE = re.compile(r"%[\w$.]+(?:#\d+)?")


def forms() -> Iterator[dict]:
    """Of what the files of kernels compile ahead of time: each form of a kernel that differs in more than types."""
    seen = set()
    for path in sorted(aot_child.KERNELS.rglob("*_triton.py")):
        parts = path.relative_to(aot_child.ROOT).with_suffix("").parts
        for case in importlib.import_module(".".join(("avfast", *parts))).aot_cases():
            flags = {n: v for n, v in case["constants"].items() if isinstance(v, bool) or n in ("MODE", "MAP")}
            form = (case["kernel"].__name__, *sorted(flags.items()))
            if form not in seen:
                seen.add(form)
                yield case


def code_of(case: dict) -> str:
    """The form's intermediate code, calls inlined. Nothing is compiled."""
    from triton._C.libtriton import ir, passes
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    target = GPUTarget("cuda", 90, 32)
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options(dict(case["options"]))
    # No size or stride is 1 here: a product with it would vanish.
    integers = {name: 16 if value == 1 else value for name, value in case["integers"].items()}
    source = aot_child.aot_source(ASTSource, case | {"integers": integers})
    functions = backend.get_codegen_implementation(options)
    made = source.make_ir(target, options, functions, backend.get_module_map(), context)
    manager = ir.pass_manager(context)
    passes.common.add_inliner(manager)
    passes.common.add_canonicalizer(manager)
    manager.run(made, "inline")
    return str(made)


class Values:
    """What each value of the code is made of."""

    def __init__(self, code: str) -> None:
        self.made: dict[str, tuple[str, str]] = {}  # operation and type
        self.of: dict[str, list[str]] = {}
        self.offsets: list[str] = []  # of addresses
        loops: list[tuple[str, int, list[str]]] = []  # its results and what is carried from one step to the next
        for line in (line.split(" loc(")[0].strip() for line in code.splitlines()):
            if found := re.match(r"(?:(%[\w$.]+)(?::(\d+))? = )?(scf\.(?:for|if|while))\b(.*)", line):
                loops.append((found[1], int(found[2] or 1), self.loop(found[3], found[4])))
            elif line.startswith("scf.yield"):
                self.close(*loops[-1], VALUE.findall(line.split(" : ")[0]))
            elif line == "}" or line.startswith("} {"):
                loops[-1:] = []
            elif found := re.match(r'(%[\w$.]+)(?::\d+)? = "?([\w.]+)"?(.*)', line):
                words, _, kind = found[3].rpartition(" : ")
                operands = VALUE.findall(words)
                self.made[found[1]], self.of[found[1]] = (found[2], kind), operands
                if found[2] == "arith.select":
                    operands.pop(0)
                if found[2] == "tt.addptr":
                    self.offsets.append(operands[1])

    def loop(self, operation: str, words: str) -> list[str]:
        assert operation != "scf.while", "this reader knows no such loop"
        carried = []
        if operation == "scf.for":
            index, *bounds = VALUE.findall(words.split(" step ")[0])
            self.made[index], self.of[index] = (operation, ""), bounds
            for name, first in re.findall(r"(%[\w$.]+) = (%[\w$.#]+)[,)]", words.split("iter_args")[-1]):
                self.made[name], self.of[name] = (operation, ""), [first]
                carried.append(name)
        return carried

    def close(self, result: str, count: int, carried: list[str], yielded: list[str]) -> None:
        for k, value in enumerate(yielded):
            name = result if count == 1 else f"{result}#{k}"
            self.made[name] = ("scf", "")
            self.of.setdefault(name, []).append(value)
            if carried:
                self.of[carried[k]].append(value)

    def constant(self, value: str) -> bool:
        operation = self.made.get(value, ("", ""))[0]
        if operation in ("tt.splat", "arith.extsi", "tt.broadcast"):
            return self.constant(self.of[value][0])
        return operation == "arith.constant"

    def products(self) -> set[str]:
        """As ``name: factor * factor``, by the names of the source."""
        found, seen, left = set(), set(), list(self.offsets)
        while left:
            value = left.pop()
            operation, kind = self.made.get(value, ("", ""))
            if value in seen or not FOLLOWED.match(operation):
                continue
            seen.add(value)
            left += self.of[value]
            narrow = operation == "arith.muli" and re.search(r"\bi32|xi32", kind)
            if narrow and not any(map(self.constant, self.of[value])):
                found.add(f"{plain(value)}: {' * '.join(map(plain, self.of[value]))}")
        return found


def plain(value: str) -> str:
    """The source's name of it.

    >>> plain("%n_begin_12"), plain("%41")
    ('n_begin', '..')
    """
    name = re.sub(r"(_\d+)?(#\d+)?$", "", value[1:])
    return ".." if name.isdigit() else name


def products() -> dict[str, set[str]]:
    """Of each kernel, over its forms."""
    found: dict[str, set[str]] = {}
    for case in forms():
        found.setdefault(case["kernel"].__name__, set()).update(Values(code_of(case)).products())
    return found
