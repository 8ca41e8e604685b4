"""One block's worth of content: what stands in it, what stands before it, and where it lies.

Owns: the link from a content to the content before it, and how many others need that link. Knows nothing of hashes,
trees, sequences or of the order of eviction; the index, the cache and the policy each keep their own fields here.
A content may outlive its block. While a longer content still stands on an evicted one, the evicted one stays as a link
without a block: identity of the parent then means equality of everything before, and one comparison of one block's
tokens proves a whole prefix.
"""

from __future__ import annotations

from collections.abc import Iterator


class CachedBlock:
    """The content `parent` + `tokens` under `salt`, and the physical block that holds it (None: nowhere now).

    A new one links itself to its parent.
    """

    __slots__ = (
        "block",
        "depth",
        "digest",
        "idle",
        "idle_children",
        "links",
        "parent",
        "rank",
        "salt",
        "ticket",
        "tokens",
    )

    def __init__(self, parent: CachedBlock | None, tokens: bytes, salt: str, digest: bytes = b"") -> None:
        self.parent = parent
        self.tokens = tokens
        """The token ids of this block as 32-bit integers: compared and hashed without a loop."""
        self.salt = salt
        self.digest = digest
        """The chained hash, where the index is one of hashes."""
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.block: int | None = None
        if parent is not None:
            parent.links += 1
        self.links: int = 0
        """Longer contents that stand on this one, and live sequences whose computed prefix ends here."""
        # The eviction policy's own.
        self.idle = False
        self.idle_children = 0
        self.rank: tuple[int, ...] = ()
        self.ticket = -1

    def is_content(self, parent: CachedBlock | None, tokens: bytes, salt: str) -> bool:
        """Whether this is that content: parents by identity, everything else by value."""
        return self.parent is parent and self.tokens == tokens and self.salt == salt

    def chain(self) -> Iterator[CachedBlock]:
        """This content and those before it, last first. Cost: O(depth)."""
        link: CachedBlock | None = self
        while link is not None:
            yield link
            link = link.parent
