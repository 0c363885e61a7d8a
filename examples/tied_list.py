"""A linked list whose nodes are tied to their list: n nodes, one fetch (Ma et al., OSDI'24, listing 3)."""

from drust import Box, Tied, spawn


class Node:
    def __init__(self, value: int, rest: "Node | None") -> None:
        self.value = value
        self.next = None if rest is None else Tied(rest)


def make(values: range) -> Box:
    node = None
    for value in reversed(values):
        node = Node(value, node)
    return Box(node)


def total(node: Node) -> int:
    result = node.value
    while node.next is not None:
        node = node.next.value
        result += node.value
    return result


def main(server: int = 0) -> int:
    numbers = spawn(make, range(1000), server=server).join()
    with numbers.borrow() as head:  # one request and one reply, if that is another server
        return total(head)


if __name__ == "__main__":
    print(main())
