"""The first bin with room, found without asking every bin.

Owns: the room left in a row of equal bins. Knows nothing of what is put in.
A complete binary tree whose leaves are the bins and whose nodes hold the most room below them. Bins not yet opened are
leaves with all their room, to the right of every opened one, so opening a bin is no special case.
Invariant: a node is the larger of its two children. Cost: O(log bins) per item where a scan would take O(bins).
Source: Johnson, Fast algorithms for bin packing, 1974: first fit in O(n log n).
"""

from __future__ import annotations


class FirstFit:
    """At most `items` bins of `capacity` each; first fit never opens more bins than it was given items."""

    def __init__(self, items: int, capacity: int) -> None:
        self._leaves = 1 << max(0, items - 1).bit_length()
        self._room = [capacity] * (2 * self._leaves)  # node 1 is the root, the children of n are 2n and 2n + 1

    def put(self, size: int) -> int:
        """Puts an item into the leftmost bin with room for it and returns the bin's number. Cost: O(log bins).

        Raises: ValueError if no bin has the room, with nothing changed.
        """
        room = self._room
        if not 0 <= size <= room[1]:
            raise ValueError(f"an item of {size} does not fit: the most room in a bin is {room[1]}")
        node = 1
        while node < self._leaves:
            node *= 2
            if room[node] < size:
                node += 1
        place = node - self._leaves
        room[node] -= size
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
        return place
