"""A name server on loopback for the names of the test, so that nothing of the machine's own is changed.

It knows A and SRV records. Every other name does not exist.
"""

import asyncio
import struct

A, SRV = 1, 33


class Dns(asyncio.DatagramProtocol):
    """`records` maps (name, type) to a list of record data; change it at any time (TTL is 1 s)."""

    def __init__(self):
        self.records: dict[tuple[str, int], list[bytes]] = {}
        self.address = ("127.0.0.1", 0)

    async def start(self):
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.address = self.transport.get_extra_info("sockname")

    def stop(self):
        self.transport.close()

    def host(self, name: str, address: str):
        self.records[name, A] = [bytes(int(part) for part in address.split("."))]

    def service(self, service: str, domain: str, target: tuple[str, int] | None):
        """Points `_service._tcp.domain` at an (address, port); None removes it.

        The target's name is the address itself, with an A record of its own: ejabberd asks us for SRV records but
        the C library for addresses, and that one reads only the machine's files. It takes a literal.
        """
        key = (f"_{service}._tcp.{domain}", SRV)
        if target is None:
            self.records.pop(key, None)
        else:
            address, port = target
            self.host(address, address)
            self.records[key] = [struct.pack(">HHH", 5, 5, port) + encode_name(address)]

    def datagram_received(self, data, sender):
        if len(data) > 12:
            self.transport.sendto(self.answer(data), sender)

    def answer(self, query: bytes) -> bytes:
        name, end = decode_name(query, 12)
        (kind,) = struct.unpack_from(">H", query, end)
        question = query[12:end + 4]
        found = self.records.get((name, kind), [])
        # An empty answer and a missing name differ: a resolver remembers the second for the whole subtree.
        known = found or any(n == name or n.endswith("." + name) for n, _ in self.records)
        flags = 0x8580 | (0 if known else 3)
        head = query[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0)
        records = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 1, len(data)) + data for data in found)
        return head + question + records


def encode_name(name: str) -> bytes:
    labels = name.rstrip(".").split(".")
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def decode_name(data: bytes, at: int) -> tuple[str, int]:
    labels = []
    while data[at]:
        labels.append(data[at + 1:at + 1 + data[at]].decode("ascii", "replace").lower())
        at += 1 + data[at]
    return ".".join(labels), at + 1
