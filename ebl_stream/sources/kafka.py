"""Documents from Kafka, each taken at least once, none unpickled.

Offsets are committed only for documents that lie in the service's journal. What a
crash leaves uncommitted comes again; whoever listens knows a document by its uid.
Documents of one run may lie in several partitions, so they come in any order; within
bounds the house sorts them.

A service takes all partitions of its topic itself. It is no member of a consumer
group, under whose name its offsets lie: a rebalance would tear runs apart, and a
service that was killed would be waited for before the next one gets anything.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from ebl_stream.errors import InputError
from ebl_stream.sources.kafka_address import parse_address
from ebl_stream.sources.kafka_codec import is_pickled, repack
from ebl_stream.sources.listener import Sink, SocketListener
from ebl_stream.transport.documents import DocumentError

logger = logging.getLogger(__name__)
_librdkafka = logging.getLogger(f"{__name__}.librdkafka")
_librdkafka.setLevel(logging.CRITICAL)  # it repeats itself; errors come as events

MAX_MESSAGE_BYTES = 4 * 2**20
"""Kafka carries documents; frames stay in files."""
COMMIT_EVERY_S = 0.5
COMMIT_AGAIN_EVERY_S = 3600.0
"""Kafka forgets offsets that nobody commits for some days."""
LOOK_EVERY_S = 5.0
"""For new partitions."""
POLL_S = 0.05
MAX_AT_ONCE = 200
ANSWER_WITHIN_S = 10.0
PROBE_EVERY_S = (1.0, 8.0)
"""The first and the longest pause between two looks for brokers that are gone."""
LOOK_WITHIN_S, PROBE_S = 3.0, 0.5

# The client retries by itself, and says so for every broker every time.
_PART_OF_AN_OUTAGE = {
    KafkaError._TRANSPORT,  # noqa: SLF001 (that is what they are called)
    KafkaError._RESOLVE,  # noqa: SLF001
    KafkaError._TIMED_OUT,  # noqa: SLF001
}


class KafkaSource(SocketListener):
    """Takes the documents of a topic, until it is closed.

    A group that Kafka does not know yet begins at the end of the topic
    (``start=latest``) or at its beginning (``start=earliest``), and is noted there at
    once; one that is known goes on where it was. A partition that appears later
    is read from its beginning.

    Parameters
    ----------
    address : str
        ``kafka://host:9092,host2:9092/topic?group=NAME``; also ``start=earliest`` and
        ``config=FILE``, lines ``name=value`` of the settings of a login.

    Raises
    ------
    InputError
        The address has another form, or a setting of the login is unknown.
    """

    acknowledges = True

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self._where = parse_address(address)
        self._waiting: deque[Message] = deque()
        self._paused = False
        self._next: dict[int, int] = {}
        """By partition, the offset behind what the sink took."""
        self._dirty = False
        self._committed_at = self._moved_at = time.monotonic()
        self._knows_topic = False
        """Whether a broker has told which partitions there are."""
        self._is_down = False
        self._probe_s = PROBE_EVERY_S[0]
        self._look_at = 0.0
        self._consumer = self._make_consumer()

    def tell(self, run_uid: str, status: dict[str, Any]) -> None:
        """Do nothing: a topic has nobody to answer to."""

    def listen(self, sink: Sink) -> None:
        """Hand every document to the sink until `close`."""
        try:
            while not self.closing.is_set():
                if time.monotonic() >= self._look_at:
                    self._look()
                self._poll(sink)
                if time.monotonic() - self._committed_at >= COMMIT_EVERY_S:
                    self._commit(sink)
            if not self._is_down:
                self._commit(sink, wait=True)
        finally:
            self._consumer.close()

    def _make_consumer(self) -> Consumer:
        settings: dict[str, Any] = {
            "bootstrap.servers": self._where.brokers,
            "group.id": self._where.group,
            "client.id": "ebl-stream",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Where an offset is gone: rather twice than never.
            "auto.offset.reset": "earliest",
            "reconnect.backoff.ms": 250,
            "reconnect.backoff.max.ms": 5000,
            "queued.max.messages.kbytes": 64 * 1024,
            "fetch.message.max.bytes": MAX_MESSAGE_BYTES,
            "log.connection.close": False,
            "socket.timeout.ms": 10_000,
            "error_cb": self._went_wrong,
            "on_commit": self._was_committed,
            **self._where.login,
        }
        try:
            return Consumer(settings, logger=_librdkafka)
        except KafkaException as error:
            raise InputError(f"{self.address}: {error.args[0].str()}") from None

    # ---------------------------------------------------------------- documents

    def _poll(self, sink: Sink) -> None:
        """Take what is there, in the order in which it came."""
        try:
            self._waiting.extend(self._consumer.consume(MAX_AT_ONCE, POLL_S))
        except (KafkaException, RuntimeError) as error:
            self.say("consume", str(error))
            self.closing.wait(1.0)
        while self._waiting and self.taking and self._take(sink, self._waiting[0]):
            self._waiting.popleft()
        self._pause(bool(self._waiting) or not self.taking)

    def _pause(self, paused: bool) -> None:
        """Let Kafka keep what the sink has no room for; go on answering it."""
        if paused != self._paused:
            change = self._consumer.pause if paused else self._consumer.resume
            change(self._consumer.assignment())
            self._paused = paused

    def _take(self, sink: Sink, message: Message) -> bool:
        """Hand a message over; False: it has to wait."""
        error = message.error()
        if error is not None:
            self._went_wrong(error)
            return True
        self.heard_at = time.monotonic()
        self._is_back()
        packed = self._repack(message.value())
        if packed is not None and not self.hand_over(sink, packed):
            return False
        partition, offset = _number(message.partition()), _number(message.offset())
        expected = self._next.get(partition, offset)
        if offset > expected:
            self._look_at_gap(message, expected)
        self._next[partition] = offset + 1
        self._dirty = True
        return True

    def _repack(self, value: bytes | None) -> bytes | None:
        """Return a message as a document of ours; None: it is none, and is counted."""
        if not value:
            self.note("not ours", "an empty message")
        elif len(value) > MAX_MESSAGE_BYTES:
            self.note(
                "too large",
                f"{len(value)} bytes, at most {MAX_MESSAGE_BYTES}; frames do not "
                f"travel through Kafka: let the detector write files",
            )
        elif is_pickled(value):
            self.note("pickled", "let the producer serialize with msgpack or JSON")
        else:
            try:
                return repack(value)
            except DocumentError as error:
                self.note("malformed", str(error))
        return None

    # ------------------------------------------------------------------ offsets

    def _commit(self, sink: Sink, *, wait: bool = False) -> None:
        """Put on disk what was taken, then tell Kafka."""
        now = self._committed_at = time.monotonic()
        if not self._dirty and now - self._moved_at < COMMIT_AGAIN_EVERY_S:
            return
        try:
            sink.commit()
        except Exception as error:
            self.note("not committed", f"{type(error).__name__}: {error}")
            return
        topic = self._where.topic
        offsets = [TopicPartition(topic, p, offset) for p, offset in self._next.items()]
        try:
            self._dirty, self._moved_at = False, now
            self._consumer.commit(offsets=offsets, asynchronous=not wait)
        except KafkaException as error:
            self._was_committed(error.args[0], [])

    def _was_committed(
        self, error: KafkaError | None, offsets: list[TopicPartition]
    ) -> None:
        if error is not None:
            logger.debug("offsets are committed later: %s", error)
            self._dirty = bool(self._next)

    def _look(self) -> None:
        """Look for brokers that are gone, and for partitions that are new."""
        there = self._partitions(PROBE_S if self._is_down else LOOK_WITHIN_S)
        if there is None:
            self._went_down()
            self._probe_s = min(2 * self._probe_s, PROBE_EVERY_S[1])
            self._look_at = time.monotonic() + self._probe_s
            return
        self._is_back()
        if new := sorted(there - self._next.keys()):
            self._begin(new)
        self._knows_topic = True
        self._look_at = time.monotonic() + LOOK_EVERY_S

    def _partitions(self, timeout_s: float) -> set[int] | None:
        """Return the topic's partitions; None: no broker answers."""
        try:
            said = self._consumer.list_topics(self._where.topic, timeout=timeout_s)
        except KafkaException:
            return None
        topic = said.topics[self._where.topic]
        if topic.error is not None:
            self._went_wrong(topic.error)
        return set(topic.partitions)

    def _begin(self, new: list[int]) -> None:
        """Begin where the group was, or where a new group is to begin."""
        topic = self._where.topic
        try:
            partitions = [TopicPartition(topic, number) for number in new]
            committed = self._consumer.committed(partitions, timeout=ANSWER_WITHIN_S)
            begin = {p.partition: self._begin_at(p) for p in committed}
        except KafkaException as error:
            logger.debug("%s: offsets: %s", self.address, error.args[0].str())
            return  # looked at again
        self._next |= begin
        places = [TopicPartition(topic, p, offset) for p, offset in self._next.items()]
        self._consumer.assign(places)
        self._waiting.clear()  # comes again
        self._paused = False

    def _begin_at(self, partition: TopicPartition) -> int:
        low, high = self._consumer.get_watermark_offsets(partition, ANSWER_WITHIN_S)
        number, offset = partition.partition, partition.offset
        if offset == OFFSET_INVALID:
            from_start = self._knows_topic or self._where.start == "earliest"
            offset = low if from_start else high
            # Noted at once: what comes from now on is owed, even to a service that
            # is started again before the first of it.
            self._dirty = True
        elif offset < low:
            self._lost_by_retention(number, low - offset)
        return offset if low <= offset <= high else low

    def _look_at_gap(self, message: Message, expected: int) -> None:
        """Say what was deleted before it was read; other gaps are Kafka's own."""
        number, offset = _number(message.partition()), _number(message.offset())
        partition = TopicPartition(self._where.topic, number)
        try:
            low, _ = self._consumer.get_watermark_offsets(partition, ANSWER_WITHIN_S)
        except KafkaException:
            return
        if low > expected:
            self._lost_by_retention(number, offset - expected)

    def _lost_by_retention(self, partition: int, n: int) -> None:
        self.problems["lost by retention"] += n
        logger.error(
            "%s: Kafka deleted %d messages of partition %d before they were read",
            self.address,
            n,
            partition,
        )

    # ------------------------------------------------------------------ brokers

    def say(self, kind: str, message: str) -> None:
        """Count what is wrong with the brokers; log the first of its kind."""
        self.problems[kind] += 1
        if self.problems[kind] == 1:
            logger.warning("%s: %s", self.address, message)

    def _went_wrong(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._went_down()
        elif error.code() not in _PART_OF_AN_OUTAGE:
            self.say(error.name(), error.str())

    def _went_down(self) -> None:
        if not self._is_down:
            self._is_down = True
            self._look_at = time.monotonic() + self._probe_s
            self.problems["brokers down"] += 1
            logger.warning("%s: no broker answers; trying again", self.address)

    def _is_back(self) -> None:
        self._probe_s = PROBE_EVERY_S[0]
        if self._is_down:
            self._is_down = False
            logger.warning("%s: a broker answers again", self.address)


def _number(value: int | None) -> int:
    if value is None:
        raise AssertionError("a message that is no error has a place")
    return value
