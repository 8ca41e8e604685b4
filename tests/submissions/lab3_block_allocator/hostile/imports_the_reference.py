"""Attack: use the reference as one's own

Catalogue: H1, H6
Strategy: imports the reference engine, or reads its source from anywhere it may lie, and hands it in
Honest part: nothing
"""

import os
import sys


def reference():
    try:
        from reference_impl.memory import BlockAllocator as found

        return found
    except ImportError:
        pass
    for start in ("/", "/course", "/home", "/tmp"):
        for folder, _, files in os.walk(start):
            if "block_allocator.py" in files and "hostile" not in folder and folder.endswith("memory"):
                sys.path.insert(0, os.path.dirname(os.path.dirname(folder)))
                from reference_impl.memory import BlockAllocator as found

                return found
    raise ImportError("no reference here")


BlockAllocator = reference()
