"""Paced reads: a read that takes long is repeated rarely, and at once where it is about something else."""

from services.scheduling.paced import Paced


class Counting:
    """A read that takes `seconds` of a clock, and returns how often it was made."""

    def __init__(self, seconds: float) -> None:
        self.now, self.reads, self._seconds = 100.0, 0, seconds

    def read(self) -> int:
        """Take the time, and count."""
        self.now += self._seconds
        self.reads += 1
        return self.reads


def test_a_read_takes_a_tenth_of_the_time_at_most() -> None:
    slow = Counting(3.0)
    paced = Paced[int](lambda: slow.now)
    began = slow.now
    while slow.now < began + 600:
        paced.get("cut", slow.read)
        slow.now += 1.0
    assert 18 <= slow.reads <= 20
    assert slow.reads * 3.0 <= 0.1 * (slow.now - began) + 3.0


def test_a_fast_read_is_made_each_time_and_another_subject_at_once() -> None:
    fast = Counting(0.001)
    paced = Paced[int](lambda: fast.now)
    for expected in (1, 2, 3):
        assert paced.get("cut", fast.read) == expected
        fast.now += 1.0
    slow = Counting(3.0)
    paced = Paced[int](lambda: slow.now)
    assert paced.get("cut", slow.read) == 1
    assert paced.get("cut", slow.read) == 1
    assert paced.get("the next round's cut", slow.read) == 2
