"""Many viewers in one process: they read a run in every way there is.

``python viewers.py URI KEY FOLDER HOW_MANY MODE`` prints ``looks``, and what they saw
as JSON when its standard input ends. In the mode ``flat`` each version of a slab is
one number everywhere, so that a torn one shows.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import zarr

from ebl_stream.engine.viewer import Wishes, write_wishes
from ebl_stream.publish.record import read_record

PAUSE_S = 0.3
OCTETS = "format=application/octet-stream"


class Viewers:
    """What many viewers of one run saw."""

    def __init__(self, uri: str, key: str, folder: Path, is_flat: bool) -> None:
        self.folder = folder
        self.is_flat = is_flat
        self.seen: Counter[str] = Counter()
        self.torn: list[str] = []
        self.failed: list[str] = []
        self.versions: set[int] = set()
        self._node = f"{folder.name}/recon"
        self._api = f"{uri}/api/v1"
        self._headers = {"Authorization": f"Apikey {key}"}
        self._spec = read_record(folder).arrays[0]
        self._heights = read_record(folder).chunks["recon"][0]

    async def look(self, number: int) -> None:
        """Look in one way again and again."""
        ways = (self._block, self._slice, self._chunk, self._record, self._wish)
        way, newest = ways[number % len(ways)], dict[int, int]()
        dice = random.Random(number)
        # A connection of its own, as every viewer has.
        async with httpx.AsyncClient(
            headers=self._headers, timeout=60, verify=False, trust_env=False
        ) as http:
            while True:
                await self._once(way, http, dice, newest)
                await asyncio.sleep(dice.uniform(0, 2 * PAUSE_S))

    async def _once(self, way: Any, *arguments: Any) -> None:
        name = way.__name__.strip("_")
        try:
            await way(*arguments)
            self.seen[name] += 1
        except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
            self.failed.append(f"{name}: {type(error).__name__}: {error}"[:300])

    async def _get(self, http: httpx.AsyncClient, route: str) -> bytes:
        reply = await http.get(f"{self._api}/{route}")
        return reply.raise_for_status().content

    async def _block(
        self, http: httpx.AsyncClient, dice: random.Random, newest: dict[int, int]
    ) -> None:
        z = dice.randrange(-(-self._spec.shape[0] // self._heights))
        at_least = self._told(z * self._heights)
        route = f"array/block/processed/{self._node}?block={z},0,0&{OCTETS}"
        self._judge("block", z, await self._get(http, route), newest, at_least)

    async def _slice(
        self, http: httpx.AsyncClient, dice: random.Random, newest: dict[int, int]
    ) -> None:
        z = dice.randrange(self._spec.shape[0])
        route = f"array/full/processed/{self._node}?slice={z},:,:&{OCTETS}"
        self._judge("slice", z, await self._get(http, route), newest)

    async def _chunk(
        self, _: httpx.AsyncClient, dice: random.Random, newest: dict[int, int]
    ) -> None:
        array: Any = zarr.open_array(self.folder / "recon", mode="r")
        z = dice.randrange(-(-self._spec.shape[0] // self._heights))
        at_least = self._told(z * self._heights)
        values = await asyncio.to_thread(lambda: array.blocks[z, 0, 0])
        self._judge("chunk", z, values.tobytes(), newest, at_least)

    async def _record(
        self, http: httpx.AsyncClient, _: random.Random, newest: dict[int, int]
    ) -> None:
        await self._get(http, f"metadata/processed/{self._node}")
        for slab in read_record(self.folder).slabs("recon"):
            if slab.version < newest.get(slab.z0, 0):
                self.torn.append(f"record: {slab} after {newest}")
            newest[slab.z0] = slab.version

    async def _wish(
        self, _: httpx.AsyncClient, dice: random.Random, __: dict[int, int]
    ) -> None:
        z = dice.randrange(self._spec.shape[0])
        write_wishes(self.folder, Wishes(rows=(z, z + 1)))

    def _told(self, z0: int) -> int:
        """Return the version that the run's metadata state of a slab."""
        slabs = read_record(self.folder).slabs("recon") if self.is_flat else ()
        return max((slab.version for slab in slabs if slab.z0 == z0), default=0)

    def _judge(
        self,
        way: str,
        z: int,
        raw: bytes,
        newest: dict[int, int],
        at_least: int = 0,
    ) -> None:
        values = np.frombuffer(raw, self._spec.dtype)
        if not np.isfinite(values).all() or not values.size:
            self.torn.append(f"{way} {z}: {values.size} values, not all finite")
        if not self.is_flat:
            return
        low, high = int(values.min()), int(values.max())
        if low != high or low < max(newest.get(z, 0), at_least):
            before = f"{newest.get(z)} was seen and {at_least} told of before"
            self.torn.append(f"{way} {z}: versions {low} to {high}; {before}")
        newest[z] = low
        self.versions.add(low)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "seen": dict(self.seen),
            "torn": self.torn,
            "failed": self.failed,
            "versions": len(self.versions),
        }


async def _until_told(look: Callable[[int], Awaitable[None]], how_many: int) -> None:
    tasks = [asyncio.ensure_future(look(number)) for number in range(how_many)]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(ended, asyncio.CancelledError):
            raise RuntimeError("a viewer ended") from ended


def main(uri: str, key: str, folder: str, how_many: str, mode: str) -> None:
    """Look until standard input ends."""
    viewers = Viewers(uri, key, Path(folder), mode == "flat")
    print("looks", flush=True)
    asyncio.run(_until_told(viewers.look, int(how_many)))
    print(json.dumps(viewers.as_dict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
