"""The mock broker of librdkafka: the real protocol, on real sockets, no JVM."""

from __future__ import annotations

import ctypes
from pathlib import Path

import confluent_kafka

_PRODUCER = 0


def _library() -> ctypes.CDLL:
    folder = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    (path,) = folder.glob("librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    pointer = ctypes.c_void_p
    signatures = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_new": (
            pointer,
            [ctypes.c_int, pointer, ctypes.c_char_p, ctypes.c_size_t],
        ),
        "rd_kafka_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, ctypes.c_int]),
        "rd_kafka_mock_cluster_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, [pointer]),
        "rd_kafka_mock_topic_create": (
            ctypes.c_int,
            [pointer, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
        ),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (
            None,
            [pointer, ctypes.c_int32],
        ),
        "rd_kafka_mock_broker_set_down": (ctypes.c_int, [pointer, ctypes.c_int32]),
        "rd_kafka_mock_broker_set_up": (ctypes.c_int, [pointer, ctypes.c_int32]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Broker:
    """One broker on this machine, whose topics have as many partitions as asked.

    It keeps some megabytes per partition, and forgets the oldest.
    """

    def __init__(self) -> None:
        self._library = _library()
        error = ctypes.create_string_buffer(512)
        conf = self._library.rd_kafka_conf_new()
        self._handle = self._library.rd_kafka_new(_PRODUCER, conf, error, 512)
        assert self._handle, error.value
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._handle, 1)
        # A real one waits three seconds for further members of a new group.
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 50)
        said = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        self.address = said.decode()

    def create(self, topic: str, n_partitions: int) -> None:
        code = self._library.rd_kafka_mock_topic_create(
            self._cluster, topic.encode(), n_partitions, 1
        )
        assert code == 0

    def go_down(self) -> None:
        assert self._library.rd_kafka_mock_broker_set_down(self._cluster, 1) == 0

    def come_up(self) -> None:
        assert self._library.rd_kafka_mock_broker_set_up(self._cluster, 1) == 0

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)
