"""Where the first of several strings ends in a text that comes piece by piece.

Owns: the automaton of Aho and Corasick over a request's stop strings. Knows nothing of tokens or requests; it is built
once and then only read.
Cost: O(total length of the strings) to build, O(1) a character, amortised.
Source: Aho and Corasick, CACM 1975.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

START = 0
"""The state before any text."""


class StopStrings:
    """A state is the longest end of the text so far that begins a stop string; `depth` is how long that is.

    depth, found: by state. found is the longest stop string that ends where the text ends, or None.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """Raises: ValueError on an empty string, which every text begins with."""
        if not all(strings):
            raise ValueError("a stop string is empty, and every text begins with it")
        self.depth: list[int] = [0]
        self.found: list[str | None] = [None]
        self._children: list[dict[str, int]] = [{}]
        for string in strings:
            self._insert(string)
        self._shorter: list[int] = [START] * len(self.depth)
        self._link()

    def _insert(self, string: str) -> None:
        state = START
        for character in string:
            if character not in self._children[state]:
                self._children[state][character] = len(self._children)
                self._children.append({})
                self.depth.append(self.depth[state] + 1)
                self.found.append(None)
            state = self._children[state][character]
        self.found[state] = string

    def _link(self) -> None:
        """For each state the next shorter end of the text that begins a stop string, breadth first."""
        queue = deque(self._children[START].values())
        while queue:
            state = queue.popleft()
            if self.found[state] is None:
                self.found[state] = self.found[self._shorter[state]]
            for character, child in self._children[state].items():
                self._shorter[child] = self.step(self._shorter[state], character)
                queue.append(child)

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while state != START and character not in self._children[state]:
            state = self._shorter[state]
        return self._children[state].get(character, START)
