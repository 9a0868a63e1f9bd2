"""The bug of the demos: it lies in the second of two repositories, and a scripted Claude mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midwatch.testing.messages_api import Answer

SHOP = {
    "test_cart.py": """\
import sys
import unittest

sys.path.insert(0, "../prices")
from prices import total


class Cart(unittest.TestCase):
    def test_three_for_two(self):
        self.assertEqual(total(price=4, count=3), 8)


if __name__ == "__main__":
    unittest.main()
""",
    ".gitignore": "__pycache__/\n",
    "README.md": "The cart of the shop. Prices come from the repository beside this one.\n",
}
PRICES = {
    ".gitignore": "__pycache__/\n",
    "prices.py": '''\
def total(price, count):
    """Every third piece is free."""
    return price * (count - count // 4)
''',
}
PROMPT = (
    "`python3 -B test_cart.py` fails. The bug is in the repository `prices`, which is checked out"
    " beside this one. Fix it there, and run the test again."
)
TEST = (
    "python3 -B test_cart.py"  # -B: no bytecode that hides a change of the same second
)
FIX = "sed -i 's|count // 4|count // 3|' ../prices/prices.py"
SAID = (
    "Every third piece is free, but `total` counted every fourth. The test passes now."
)


def looked() -> Answer:
    """Claude runs the test."""
    return _bash(TEST)


def mended() -> Answer:
    """Claude mends the bug."""
    return _bash(FIX)


def _bash(command: str) -> Answer:
    from midwatch.testing.messages_api import Answer, ToolUse

    return Answer(tool_uses=[ToolUse("Bash", {"command": command})])
