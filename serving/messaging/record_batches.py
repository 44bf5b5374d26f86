"""Record batches that cannot stop a reader: what cannot be decoded becomes a record that says so.

Turns the bytes of a fetch into records, with kafka-python's decoder. Where that raises, for a record or a whole batch, a
placeholder stands for the smallest unit that cannot be read: its value is `Unreadable`, its offset the unit's last. consumer.py
uses it for every fetch; services/ingestion makes dead letters of the placeholders. It does not know what a message means.

kafka-python itself raises from `poll` for as long as such a record is in its way, and hangs if it is polled again.
"""

from collections.abc import Callable, Iterator
from typing import Any

from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, KafkaError, UnknownError, for_code
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import decode_varint

from serving.messaging.decompression import CannotDecompress, decompress

MAX_BATCH_BYTES = 64 << 20  # of one batch, decompressed
MAX_RECORD_BYTES = 4_100_000  # of one record: more than any message that Ratchet accepts
_MAX_DELTA = 1 << 24  # a batch of more records is a damaged header
_OF_DAMAGE = (CorruptRecordError, UnknownError)  # errors of a broker that cannot read its own disk at an offset


class Unreadable(bytes):
    """The bytes that could not be decoded, cut to MAX_RECORD_BYTES; `reason` says why, `records` how many they hold."""

    reason: str
    records: int

    @classmethod
    def of(cls, data: Any, reason: str, records: int = 1) -> "Unreadable":
        """Return the bytes with a reason."""
        made = cls(data[:MAX_RECORD_BYTES])
        made.reason, made.records = reason, records
        return made


class _Batch(DefaultRecordBatch):  # type: ignore[misc]  # kafka-python has no types
    """A batch whose iteration never raises. Offsets rise by at least one and stay within the batch."""

    _buffer: bytearray
    _pos: int
    _decompressed: bool
    _next_record_index: int

    def __init__(self, data: Any, following: int | None) -> None:
        super().__init__(data)
        self._reached, self._control = self.base_offset - 1, self.is_control_batch
        self._last = self.last_offset if following is None else min(self.last_offset, following - 1)
        self.end = self._last + 1

    def __iter__(self) -> Iterator[Any]:
        if self.compression_type != self.CODEC_NONE and not self._decompressed:
            try:
                data = bytes(memoryview(self._buffer)[self._pos :])
                self._buffer, self._pos = bytearray(decompress(self.compression_type, data, MAX_BATCH_BYTES)), 0
            except CannotDecompress as error:
                return iter([_placeholder(self, self._last, self._buffer, str(error), self._num_records)])
        self._decompressed = True
        return self

    def __next__(self) -> Any:
        if self._control:
            return super().__next__()
        if self._next_record_index >= self._num_records or self._reached >= self._last:
            raise StopIteration
        start = self._pos
        try:
            record = self._read_msg()
            if self._pos - start > MAX_RECORD_BYTES or not self._reached < record.offset <= self._last:
                record = self._unread(
                    start, f"{self._pos - start} bytes at offset {record.offset}: beyond its batch or too long"
                )
        except UnicodeDecodeError:
            record = self._unread(start, None)
        except (ValueError, IndexError, CorruptRecordError) as error:
            record = self._unread(start, str(error))
        self._next_record_index += 1
        self._reached = record.offset
        return record

    def _unread(self, start: int, reason: str | None) -> Any:
        """Return what stands for the record at `start`, and go on after it; without a reason its header names are at fault."""
        try:
            self._pos = _record_end(self._buffer, start)
        except (ValueError, IndexError) as error:
            left = self._num_records - self._next_record_index
            return self._give_up(self._buffer[start:], f"a record's length cannot be read: {error}", left)
        if reason is None:
            return self._with_odd_header_names(start, self._pos)
        return _placeholder(self, self._reached + 1, self._buffer[start : self._pos], reason)

    def _give_up(self, data: Any, reason: str, records: int) -> Any:
        """Return a placeholder for the rest of the batch."""
        self._next_record_index = self._num_records
        return _placeholder(self, self._last, data, reason, records)

    def _with_odd_header_names(self, start: int, end: int) -> Any:
        """Return a record that has header names that are not UTF-8: their bytes are written as backslash escapes."""
        buffer, at = self._buffer, start
        try:
            _, at = decode_varint(buffer, at)  # length
            _, at = decode_varint(buffer, at)  # attributes
            timestamp_delta, at = decode_varint(buffer, at)
            offset_delta, at = decode_varint(buffer, at)
            key, at = _nullable(buffer, at, end)
            value, at = _nullable(buffer, at, end)
            count, at = decode_varint(buffer, at)
            headers = []
            for _ in range(count):
                name, at = _nullable(buffer, at, end)
                content, at = _nullable(buffer, at, end)
                headers.append(((name or b"").decode("utf-8", errors="backslashreplace"), content))
            if at != end or not self._reached < self.base_offset + offset_delta <= self._last:
                raise ValueError("the record's length or offset is wrong")
        except (ValueError, IndexError) as error:
            return _placeholder(self, self._reached + 1, buffer[start:end], str(error))
        timestamp = self.first_timestamp + timestamp_delta
        offset = self.base_offset + offset_delta
        return DefaultRecord(end - start, offset, timestamp, self.timestamp_type, key, value, headers)


class Damaged(ValueError):
    """A batch that may be whole when it is fetched again."""


class _DamagedBatch:
    """A batch that cannot be trusted beyond its offset, in the shape that kafka-python reads: one placeholder."""

    magic, leader_epoch, is_control_batch, is_transactional = 2, -1, False, False

    def __init__(self, data: Any, base_offset: int, last_offset: int, reason: str, records: int) -> None:
        self.base_offset, self.last_offset, self.next_offset = base_offset, last_offset, last_offset + 1
        self._value = Unreadable.of(data, reason, records)

    def has_producer_id(self) -> bool:
        return False

    def validate_crc(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter([DefaultRecord(len(self._value), self.last_offset, 0, 0, None, self._value, [])])


class Records(MemoryRecords):  # type: ignore[misc]
    """The batches of one fetch. Raises Damaged for a wrong checksum while `retry(offset)` allows another fetch."""

    _next_slice: Any

    def __init__(self, data: Any, fetched_at: int, retry: Callable[[int], bool]) -> None:
        self._expected, self._retry = fetched_at, retry  # the offset that comes next
        super().__init__(data)

    def next_batch(self) -> Any:
        """Return the next batch, or None after the last. Raises Damaged."""
        data = self._next_slice
        if data is None:
            return None
        self._cache_next()
        following = self._following(data)
        try:
            batch = _batch_of(data, following)
            if batch.validate_crc():
                self._expected = max(self._expected, batch.end)
                return batch
            reason = "the batch's checksum is wrong: the broker's disk or the network has damaged it"
        except Exception as error:  # whatever a damaged header makes the decoder raise
            reason = f"the batch cannot be read: {type(error).__name__}: {error}"
        base = int.from_bytes(data[:8], signed=True)
        if abs(base - self._expected) > _MAX_DELTA:  # the checksum does not cover it
            base = self._expected
        if self._retry(base):
            raise Damaged(reason)
        return self._damaged(data, base, following, reason)

    def _following(self, data: Any) -> int | None:
        """Return the offset at which the batch after `data` begins; None at the end, or if a damaged length led to it."""
        if self._next_slice is None or len(data) < MemoryRecords.MIN_SLICE:
            return None
        base, following = (int.from_bytes(part[:8], signed=True) for part in (data, self._next_slice))
        return following if base < following <= base + _MAX_DELTA else None

    def _damaged(self, data: Any, base: int, following: int | None, reason: str) -> _DamagedBatch:
        """Return a placeholder that ends before the next batch, and never before the offset that comes next."""
        last = base if following is None else following - 1
        if following is None:
            self._next_slice = None  # the broker finds what follows by its offset; the length may be wrong
            delta, count = (int.from_bytes(data[at : at + 4], signed=True) for at in (23, 57))
            if 0 <= delta == count - 1 < _MAX_DELTA:
                last = base + delta
        last = max(last, self._expected)
        self._expected = last + 1
        return _DamagedBatch(data, base, last, reason, last - base + 1)


class _LegacyBatch:
    """A batch of message format 0 or 1, decoded at once, so that its errors show before it is iterated."""

    def __init__(self, data: Any, magic: int) -> None:
        batch = LegacyRecordBatch(data, magic)
        self.magic, self.base_offset, self._valid = magic, batch.base_offset, bool(batch.validate_crc())
        self._records = list(batch) if self._valid else []
        self.end = max((record.offset for record in self._records), default=self.base_offset) + 1

    def validate_crc(self) -> bool:
        return self._valid and all(record.validate_crc() for record in self._records)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._records)


def _batch_of(data: Any, following: int | None) -> Any:
    """Return the batch in these bytes, its records not decoded yet. Raises what a damaged header causes.

    Its records end before the offset `following`, whatever its header claims.
    """
    if len(data) < MemoryRecords.MIN_SLICE:
        raise ValueError(f"{len(data)} bytes")
    magic = data[MemoryRecords.MAGIC_OFFSET]
    if magic > 2:
        raise ValueError(f"message format {magic}")
    return _Batch(data, following) if magic == 2 else _LegacyBatch(data, magic)


class FetchFailed(KafkaError):  # type: ignore[misc]
    """The records at an offset cannot be fetched, or are damaged: seek to fetch them again, or past them."""

    def __init__(self, topic: str, partition: int, offset: int, reason: str, *, counted: bool) -> None:
        super().__init__(f"{topic}/{partition} offset {offset}: {reason}")
        self.topic, self.partition, self.offset, self.reason = topic, partition, offset, reason
        self.counted = counted  # by `retry`


def read_robustly(fetcher: Fetcher, retry: Callable[[str, int, int], bool]) -> None:
    """Make a consumer's fetcher decode with this module.

    `poll` then raises FetchFailed if the broker cannot read an offset or returns no whole batch from there, or if a batch's
    checksum is wrong and `retry(topic, partition, offset)` is true. The caller must seek before it polls again.
    """
    base, parse = Fetcher.PartitionRecords, fetcher._parse_fetched_data

    class PartitionRecords(base):  # type: ignore[misc, valid-type]
        def __init__(self, fetch_offset: int, tp: Any, records: Any, **options: Any) -> None:
            robust = Records(records._buffer, fetch_offset, lambda at: retry(tp.topic, tp.partition, at))
            super().__init__(fetch_offset, tp, robust, **options)

        def take(self, n: int | None = None) -> list[Any]:
            try:
                return list(super().take(n))
            except Exception as error:
                self.drain()  # the iterator has ended: kafka-python would ask it for more without end
                tp, at, counted = self.topic_partition, self.next_fetch_offset, isinstance(error, Damaged)
                raise FetchFailed(tp.topic, tp.partition, at, str(error), counted=counted) from error

    def parse_fetched_data(completed: Any) -> Any:
        tp, at = completed.topic_partition, completed.fetched_offset
        kind = for_code(completed.partition_data.error_code)
        # kafka-python would fetch again without end, and say nothing.
        if kind in _OF_DAMAGE and _is_position(fetcher, tp, at):
            raise FetchFailed(tp.topic, tp.partition, at, f"the broker cannot read it: {kind.__name__}", counted=False)
        try:
            return parse(completed)
        except KafkaError as error:
            if type(error) is not KafkaError:  # that class alone: the answer holds no complete batch
                raise
            raise FetchFailed(tp.topic, tp.partition, at, str(error), counted=False) from error

    fetcher.PartitionRecords, fetcher._parse_fetched_data = PartitionRecords, parse_fetched_data


def _is_position(fetcher: Fetcher, topic_partition: Any, offset: int) -> bool:
    """Return whether an offset is read next: an assignment or a seek may have come in between."""
    state = fetcher._subscriptions.assignment.get(topic_partition)
    return state is not None and state.is_fetchable() and state.position.offset == offset


def _placeholder(batch: Any, offset: int, data: Any, reason: str, records: int = 1) -> Any:
    value = Unreadable.of(bytes(data[:MAX_RECORD_BYTES]), reason, records)
    return DefaultRecord(len(data), offset, batch.max_timestamp, batch.timestamp_type, None, value, [])


def _record_end(buffer: Any, start: int) -> int:
    length, at = decode_varint(buffer, start)
    if not 0 < length <= len(buffer) - at:
        raise ValueError(f"{length} bytes, of {len(buffer) - at} left in the batch")
    return int(at + length)


def _nullable(buffer: Any, at: int, end: int) -> tuple[bytes | None, int]:
    """Return the length-prefixed bytes at `at`, None for a negative length, and where they end. Raises ValueError."""
    length, at = decode_varint(buffer, at)
    if length > end - at:
        raise ValueError("a field is longer than its record")
    return (bytes(buffer[at : at + length]), at + length) if length >= 0 else (None, at)
