"""Reading a pickle without obeying it: calls are written down, and nothing that they name is looked up."""

import pickletools
from dataclasses import dataclass, field
from typing import Any

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Opcodes that put their argument on the stack.
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IGNORED = {"PROTO", "FRAME", "STOP"}


@dataclass(frozen=True)
class Named:
    """A class or function that the pickle names; it is never imported.

    Args:
        module: where it would be.
        name: its name there.
    """

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """An object that the pickle wants made; it is never made.

    Args:
        callee: what would be called: `Named`, as a rule.
        arguments: for it.
        state: what the object would be given afterwards.
        items: entries that would be set afterwards.
    """

    callee: Any
    arguments: Any
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outside:
    """Something that is kept beside the pickle, such as the numbers of a tensor.

    Args:
        about: what the pickle says of it ("persistent id").
    """

    about: Any


def read_inert(pickled: bytes) -> Any:
    """What a pickle says: containers, numbers and texts, with `Named`, `Call` and `Outside` for the rest.

    The opcodes are decoded by `pickletools` and carried out here on a stack of plain values; those that
    import or call something leave a note in its place.

    Args:
        pickled: the bytes of the pickle.

    Raises:
        ValueError: an opcode that is not known here, or bytes that are no pickle.

    Example:
        >>> import pickle, pathlib
        >>> note = read_inert(pickle.dumps(pathlib.PurePosixPath("etc"), protocol=2))
        >>> note.callee, note.arguments
        (Named(module='pathlib', name='PurePosixPath'), ('etc',))
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            machine.step(opcode.name, argument)
        return machine.stack[-1]
    except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
        # Stack, memo or containers are not what an opcode needs, where no pickler wrote the bytes.
        raise ValueError(f"the pickle in it is not understood: {error}") from error


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in CONSTANTS:
            stack.append(CONSTANTS[opcode])
        elif opcode in LITERALS:
            stack.append(argument)
        elif opcode in EMPTY:
            stack.append(EMPTY[opcode]())
        elif opcode in TUPLES:
            stack.append(tuple(self.top(TUPLES[opcode])))
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif opcode not in IGNORED:
            self.other(opcode, argument)

    def other(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "LIST":
                stack.append(self.marked())
            case "DICT":
                stack.append(_pairs(self.marked()))
            case "APPEND" | "APPENDS":
                values = self.marked() if opcode == "APPENDS" else self.top(1)
                if not isinstance(stack[-1], Call):
                    stack[-1].extend(values)
            case "SETITEM" | "SETITEMS":
                pairs = _pairs(self.marked() if opcode == "SETITEMS" else self.top(2))
                (stack[-1].items if isinstance(stack[-1], Call) else stack[-1]).update(pairs)
            case "GLOBAL":
                stack.append(Named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(Named(*self.top(2)))
            case "REDUCE" | "NEWOBJ":
                stack.append(Call(*self.top(2)))
            case "BUILD":
                (state,) = self.top(1)
                if isinstance(stack[-1], Call):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(Outside(*self.top(1)))
            case _:
                raise ValueError(f"it has the opcode {opcode}, which is not known here")

    def top(self, count: int) -> list[Any]:
        """Take so many values from the stack."""
        if count > len(self.stack):
            raise IndexError("the stack is too short")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def marked(self) -> list[Any]:
        """Take the values since the last mark."""
        first = self.marks.pop()
        taken = self.stack[first:]
        del self.stack[first:]
        return taken


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))
