"""A network that harms what passes."""

from __future__ import annotations

import random
import threading

import zmq

from ebl_stream.transport import wire

TIMEOUT_S = 30.0


class BadNetwork:
    """Between a door and a service: drops, doubles and reorders what passes."""

    def __init__(self, address: str, seed: int, share: float = 0.2) -> None:
        self._random = random.Random(seed)
        self._share = share
        self.n_harmed = 0
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        port = self._front.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"zmq://127.0.0.1:{port}"
        self._back = self._context.socket(zmq.DEALER)
        self._back.connect(wire.endpoint(address))
        self._closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._thread.join(TIMEOUT_S)
        self._context.destroy(linger=0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        poller.register(self._back, zmq.POLLIN)
        route = b""
        pocket: list[list[bytes]] = []
        while not self._closing:
            ready = dict(poller.poll(20))
            if self._front in ready:
                route, *parts = self._front.recv_multipart()
                for passed in self._harm(parts, pocket):
                    self._back.send_multipart(passed)
            if self._back in ready:
                answer = self._back.recv_multipart()
                for passed in self._harm(answer, None):
                    self._front.send_multipart([route, *passed])

    def _harm(
        self, parts: list[bytes], pocket: list[list[bytes]] | None
    ) -> list[list[bytes]]:
        dice = self._random.random()
        if dice > self._share:
            passed = [parts]
            if pocket and self._random.random() < 0.5:
                passed += [pocket.pop(0)]
            return passed
        self.n_harmed += 1
        if dice < self._share / 3:
            return []
        if dice < 2 * self._share / 3 or pocket is None:
            return [parts, parts]
        pocket.append(parts)
        return []
