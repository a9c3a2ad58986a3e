"""Reads machine code as `cuobjdump -sass` prints it: instructions, and the loops of a kernel."""

import re
from collections import Counter
from dataclasses import dataclass

PRODUCT = re.compile(r"(H|I|B|Q|O)G?MMA\b")
COPY = re.compile(r"(LDGSTS|UTMALDG|UBLKCP)\b")
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?([A-Z][\w.]*)\s*([^;]*);")
_ENDS = ("EXIT", "RET", "BPT")


@dataclass(frozen=True)
class Instruction:
    """One instruction; `name` is in full, as in HMMA.16816.F32.BF16."""

    address: int
    predicated: bool
    name: str
    operands: str

    def target(self) -> int:
        """Where a branch goes."""
        return int(self.operands.split()[-1], 16)


def functions(listing: str) -> dict[str, list[Instruction]]:
    """{mangled name: its instructions}."""
    found = {}
    for part in listing.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        found[name.strip()] = [
            Instruction(int(address, 16), bool(predicate), opcode, operands.strip())
            for address, predicate, opcode, operands in _LINE.findall(body)
        ]
    return found


def product_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """One turn of every innermost loop with matrix products.

    Of the ways through a loop the one counted has the most products, of those the most copies to
    shared memory, of those the fewest instructions, and enters no loop inside: the usual turn.
    """
    blocks, following = _blocks(code)
    loops = _product_loops(blocks, following, set(blocks))
    return [_usual_turn(blocks, following, *loop) for loop in loops]


def count(instructions: list[Instruction]) -> dict[str, int]:
    """How often each is there, by full name."""
    return dict(Counter(i.name for i in instructions))


def under_products(turn: list[Instruction]) -> list[Instruction]:
    """Of a turn with wgmma, what follows the last product before the wait for it."""
    last = max(i for i, instruction in enumerate(turn) if PRODUCT.match(instruction.name))
    for i, instruction in enumerate(turn[last:], last):
        if instruction.name == "WARPGROUP.DEPBAR.LE" and instruction.operands.endswith(" 0x0"):
            return turn[last + 1 : i]
    return []


def _blocks(code):
    """{address: instructions} and {address: addresses of the blocks that may follow}."""
    following_of, targets, barriers = {}, set(), {}
    for i, instruction in enumerate(code):
        kind, after = instruction.name.split(".")[0], [c.address for c in code[i + 1 : i + 2]]
        if kind == "BSSY":
            barriers[instruction.operands.split(",")[0]] = instruction.target()
        if kind == "BRA" and ".DIV" not in instruction.name:
            certain = not instruction.predicated and "P" not in instruction.operands
            following_of[i] = [instruction.target()] + ([] if certain else after)
        elif kind == "BSYNC":
            following_of[i] = [barriers[instruction.operands]]
            following_of[i] += after if instruction.predicated else []
        elif kind in _ENDS:
            following_of[i] = after if instruction.predicated else []
        targets.update(following_of.get(i, ()))
    blocks, following, begin = {}, {}, 0
    for i in range(len(code)):
        last = i + 1 == len(code)
        if i in following_of or last or code[i + 1].address in targets:
            start = code[begin].address
            blocks[start] = code[begin : i + 1]
            following[start] = following_of.get(i, [] if last else [code[i + 1].address])
            begin = i + 1
    return blocks, following


def _components(nodes, following):
    """Strongly connected components of a graph, a set each, last in the order of paths first."""
    number, lowest, stack, found = {}, {}, [], []
    for root in nodes:
        walk = [(root, iter(following[root]))] if root not in number else []
        while walk:
            node, successors = walk[-1]
            if node not in number:
                number[node] = lowest[node] = len(number)
                stack.append(node)
            for successor in successors:
                if successor in nodes and successor not in number:
                    walk.append((successor, iter(following[successor])))
                    break
                if successor in nodes and successor in stack:
                    lowest[node] = min(lowest[node], lowest[successor])
            else:
                walk.pop()
                if walk:
                    lowest[walk[-1][0]] = min(lowest[walk[-1][0]], lowest[node])
                if lowest[node] == number[node]:
                    place = stack.index(node)
                    found.append(set(stack[place:]))
                    del stack[place:]
    return found


def _is_loop(component, following):
    return len(component) > 1 or any(node in following[node] for node in component)


def _product_loops(blocks, following, nodes):
    """(header, nodes) of the innermost loops with products among `nodes`."""
    found = []
    for component in _components(nodes, following):
        has_products = any(PRODUCT.match(i.name) for node in component for i in blocks[node])
        if not has_products or not _is_loop(component, following):
            continue
        entries = {s for n in following if n not in component for s in following[n]} & component
        header = min(entries or component)
        inside = _product_loops(blocks, following, component - {header})
        found += inside or [(header, component)]
    return found


def _usual_turn(blocks, following, header, nodes):
    rest = _components(nodes - {header}, following)
    allowed = {n for c in rest if not _is_loop(c, following) for n in c}
    # From a block to the loop's end: the best (products, copies, -instructions) and what follows.
    ways = {}
    for node in [n for c in rest for n in c if n in allowed] + [header]:
        own = [i.name for i in blocks[node]]
        worth = (sum(map(bool, map(PRODUCT.match, own))), sum(map(bool, map(COPY.match, own))))
        options = [((0, 0, 0), None)] if header in following[node] else []
        options += [(ways[s][0], s) for s in following[node] if s in ways]
        if options:
            (products, copies, cost), successor = max(options, key=lambda option: option[0])
            ways[node] = (products + worth[0], copies + worth[1], cost - len(own)), successor
    turn, node = [], header
    while node is not None:
        turn += blocks[node]
        node = ways[node][1]
    return turn
