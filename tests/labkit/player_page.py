"""How the tests read a player's page: the state that it shows, to be held against the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Open = Callable[..., Any]
"""What the fixture `opened` gives: players -> the page with all of them."""

READ_STATE = """root => {
  const panel = root.querySelector('.p2p-panel:not([hidden])');
  const numbers = text => text.match(/\\d+/g).map(Number);
  const tables = {}, tokens = {};
  for (const row of panel.querySelectorAll('tr[data-seq]')) {
    tables[row.dataset.seq] = numbers(row.cells[2].textContent);
    tokens[row.dataset.seq] = Number(row.cells[1].textContent);
  }
  const blocks = [...panel.querySelectorAll('li[data-block]')];
  return {
    num_free: numbers(panel.querySelector('.p2p-words .p2p-free').textContent)[0], tables, tokens,
    ref_counts: blocks.map(b => numbers(b.textContent.match(/ref count \\d+/)[0])[0]),
    filled: blocks.map(b => b.querySelectorAll('.p2p-slot.full').length),
  };
}"""


def read_state(page: Any, number: int = 0) -> Any:
    return page.locator(".p2p-player").nth(number).evaluate(READ_STATE)


def visible_part(state: dict[str, Any]) -> dict[str, Any]:
    return {key: state[key] for key in ("num_free", "tables", "tokens", "ref_counts", "filled")}
