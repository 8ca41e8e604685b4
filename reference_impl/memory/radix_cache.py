"""The prefix cache as a radix tree: the same contract, the same hits, and not one hash.

Owns: the tree. A node is a run of blocks; a prompt that parts ways in the middle of a run splits it. Knows nothing of
sequences, the pool or eviction: those are `IndexedCache`, shared with the hash cache, so that the two can differ only
in what they find.
A split moves the head of the run into a new node, O(blocks matched by the sequence that splits), and leaves the tail
where it is. Runs are not joined again when a branch dies: the next split would undo it.
Source: RadixAttention, Zheng et al., NeurIPS 2024, section 3; at the granularity of a block, not of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from reference_impl.memory.cached_block import CachedBlock
from reference_impl.memory.eviction import LRU, EvictionPolicy
from reference_impl.memory.prefix_cache import IndexedCache


class _Node:
    """A run of contents, each standing on the one before, and the nodes that stand on its last. A root has no run."""

    __slots__ = ("children", "parent", "run")

    def __init__(self, parent: _Node | None) -> None:
        self.parent = parent
        self.run: list[CachedBlock] = []
        self.children: dict[bytes, _Node] = {}


class RadixIndex:
    """Contents by their tokens: one root for each salt, one child for each first block that differs."""

    def __init__(self) -> None:
        self._roots: dict[str, _Node] = {}
        self._node_of: dict[CachedBlock, _Node] = {}

    def match(self, blocks: Iterable[bytes], salt: str) -> list[CachedBlock]:
        matched: list[CachedBlock] = []
        node, place = self._roots.get(salt), 0
        for tokens in blocks:
            if node is not None and place == len(node.run):
                node, place = node.children.get(tokens), 0
            if node is None:
                break
            entry = node.run[place]
            if entry.block is None or entry.tokens != tokens:
                break
            matched.append(entry)
            place += 1
        return matched

    def find_or_add(self, parent: CachedBlock | None, tokens: bytes, salt: str) -> CachedBlock:
        if parent is None:
            node = self._roots.setdefault(salt, _Node(None))
        else:
            node = self._node_of[parent]
            place = parent.depth - node.run[0].depth + 1
            if place < len(node.run):
                if node.run[place].tokens == tokens:
                    return node.run[place]
                node = self._split(node, place)
        child = node.children.get(tokens)
        if child is not None:
            return child.run[0]
        return self._add(node, CachedBlock(parent, tokens, salt))

    def _add(self, node: _Node, entry: CachedBlock) -> CachedBlock:
        if not node.run or node.children:
            child = _Node(node)
            node.children[entry.tokens] = child
            node = child
        node.run.append(entry)
        self._node_of[entry] = node
        return entry

    def _split(self, node: _Node, place: int) -> _Node:
        """Cut `node` before `place`; returns the new node with the head of its run. Cost: O(place)."""
        parent = node.parent
        assert parent is not None, "a root has no run to split"
        head = _Node(parent)
        head.run = node.run[:place]
        for entry in head.run:
            self._node_of[entry] = head
        parent.children[head.run[0].tokens] = head
        del node.run[:place]
        node.parent = head
        head.children[node.run[0].tokens] = node
        return head

    def discard(self, entry: CachedBlock) -> None:
        node = self._node_of.pop(entry)
        last = node.run.pop()
        assert last is entry, f"I7: a content that carries others was forgotten, at depth {entry.depth}"
        if node.run:
            return
        parent = node.parent
        assert parent is not None, "a root has no run to discard from"
        del parent.children[entry.tokens]
        if parent.parent is None and not parent.children:
            del self._roots[entry.salt]

    def entries(self) -> Iterator[CachedBlock]:
        return iter(self._node_of)

    def check_invariants(self) -> None:
        """Every content lies where its tokens lead. Cost: O(tokens cached). AssertionError names the block."""
        reached = 0
        for salt, root in self._roots.items():
            assert root.children, f"the root of salt {salt!r} leads nowhere"
            waiting: list[tuple[_Node, CachedBlock | None]] = [(root, None)]
            while waiting:
                node, parent = waiting.pop()
                for entry in node.run:
                    in_place = self._node_of.get(entry) is node and entry.is_content(parent, entry.tokens, salt)
                    assert in_place, f"I7: block {entry.block} stands at another's place in the tree"
                    parent = entry
                    reached += 1
                for first, child in node.children.items():
                    assert child.parent is node, f"I7: the node of block {child.run[0].block} has another parent"
                    assert child.run[0].tokens == first, f"I7: block {child.run[0].block} stands under other tokens"
                    waiting.append((child, parent))
        assert reached == len(self._node_of), f"I7: {len(self._node_of)} contents, {reached} of them in the tree"


class RadixCache(IndexedCache):
    """Prefix cache by radix tree; `PrefixCache` and this give the same answers to any calls."""

    def __init__(self, num_blocks: int, block_size: int, *, eviction: Callable[[], EvictionPolicy] = LRU) -> None:
        super().__init__(num_blocks, block_size, RadixIndex(), eviction)
