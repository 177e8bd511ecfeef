#!/usr/bin/env python3
"""Sends IPv4 packets at a rate: for `groups.py`, on a host of its lab.

    raw_sender.py SOURCE DESTINATION syn RATE SECONDS     TCP SYNs, each of a new connection
    raw_sender.py SOURCE DESTINATION udp RATE SECONDS     UDP datagrams of one flow
    raw_sender.py SOURCE DESTINATION flows RATE SECONDS   UDP datagrams, each of a new flow to one of the ports of `echo`
    raw_sender.py ADDRESS - echo 0 SECONDS                answers such datagrams

Prints how many packets it sent.
"""

import random
import selectors
import socket
import struct
import sys
import time

# No socket has this port. The lab drops packets to it, so that the kernel does not answer them.
SINK = 9
ECHO = range(20_000, 20_020)


def echo(address, seconds):
    waiting = selectors.DefaultSelector()
    for port in ECHO:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        one.bind((address, port))
        one.setblocking(False)
        waiting.register(one, selectors.EVENT_READ)
    answered, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for key, _ in waiting.select(0.2):
            for _ in range(64):
                try:
                    data, sender = key.fileobj.recvfrom(64)
                except BlockingIOError:
                    break
                key.fileobj.sendto(data, sender)
                answered += 1
    return answered


def main():
    source, destination, kind, rate, seconds = sys.argv[1:]
    rate, seconds = float(rate), float(seconds)
    if kind == "echo":
        return echo(source, seconds)
    out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    tcp = kind == "syn"
    length = 20 + (20 if tcp else 12)
    # The kernel fills in identification and checksum. Engines do not check the checksum of the segment.
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, 64, 6 if tcp else 17, 0) + ends
    number, sent, begin = random.randrange(1 << 30), 0, time.monotonic()
    while True:
        elapsed = time.monotonic() - begin
        if elapsed >= seconds:
            return sent
        due = int(elapsed * rate)
        if sent >= due:
            time.sleep(0.0002)
            continue
        while sent < due:
            near = 1024 + number % 64_000
            if tcp:
                segment = struct.pack("!HHIIBBHHH", near, SINK, number & 0xFFFFFFFF, 0, 0x50, 0x02, 1000, 0, 0)
            elif kind == "udp":
                segment = struct.pack("!HHHH4s", 1024, SINK, 12, 0, b"data")
            else:
                port = ECHO[number // 64_000 % len(ECHO)]
                segment = struct.pack("!HHHH4s", near, port, 12, 0, b"data")
            out.sendto(head + segment, (destination, 0))
            number += 1
            sent += 1


if __name__ == "__main__":
    print(main())
