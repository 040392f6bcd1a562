"""A set of very many 64-bit hashes that numbers them, in about 20 bytes each (a dict of ints takes 100 and more)."""

from __future__ import annotations

from array import array

import numpy as np

_LEAST_SLOTS = 1 << 10
_KEYS_AT_ONCE = 1 << 16


class KeyTable:
    """Open addressing with linear probing (Knuth, The Art of Computer Programming, section 6.4)."""

    def __init__(self) -> None:
        self._keys = array("q")  # in the order in which they came
        self._slots = array("i", [-1]) * _LEAST_SLOTS  # numbers of keys

    def __len__(self) -> int:
        return len(self._keys)

    def number(self, key: int) -> int:
        """Give the number of a key (signed, 64 bits, evenly spread): ``len`` of before where it is a new one."""
        slots, keys = self._slots, self._keys
        mask = len(slots) - 1
        slot = key & mask
        while (found := slots[slot]) >= 0:
            if keys[found] == key:
                return found
            slot = (slot + 1) & mask
        slots[slot] = n = len(keys)
        keys.append(key)
        if 3 * len(keys) > 2 * len(slots):
            self._grow()
        return n

    def _grow(self) -> None:
        n_slots = 2 * len(self._slots)
        self._slots = array("i", [-1]) * n_slots
        slots, keys = np.frombuffer(self._slots, np.int32), np.frombuffer(self._keys, np.int64)
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            chosen = keys[start : start + _KEYS_AT_ONCE]
            numbers, places = np.arange(start, start + len(chosen), dtype=np.int32), chosen & (n_slots - 1)
            while len(numbers):
                free = slots[places] < 0
                slots[places[free]] = numbers[free]  # of several for one place the last is written
                left = slots[places] != numbers
                numbers, places = numbers[left], (places[left] + 1) & (n_slots - 1)
