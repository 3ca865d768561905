#!/usr/bin/env python3
"""The soak: mixed load for half an hour, then the question whether anything has grown.

    cargo build --release && tests/soak/soak.py [--minutes 30] [--clients 2000] [--binary PATH]

It starts the service and a redis-server on free ports. Clients sit in rooms of 20 and broadcast; a tenth of
them comes and goes all the time, by a Close, by the end of the stream or by a reset; some stop reading; some
send junk; a backend notifies rooms, users and everyone; Redis is restarted every half minute. Every client
checks that what it gets of one publisher comes once and in order. Memory, threads and descriptors under load
are compared between the warm-up and the end, and at rest between the start and the end. Exit code 0 when
nothing has grown, nothing came twice or out of order, and the service ends with code 0.

Only Python's standard library is needed, and redis-server. It is not part of the test command.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

SECRET = "a secret of the soak, long enough for production"
ROOM_SIZE = 20
# Broadcasts a second, over all clients: each goes to a room.
BROADCASTS = 150
REDIS_RESTART_SECONDS = 30
# What the RSS under load may grow by, for what an allocator keeps, between the warm-up and the end.
RSS_SLACK = 0.10
RSS_SLACK_KIB = 4096


def token(user, role=""):
    part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")
    claims = {"sub": user, "role": role, "exp": int(time.time()) + 24 * 3600}
    message = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(claims)
    signature = hmac.new(SECRET.encode(), message, hashlib.sha256).digest()
    return (message + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def frame(opcode, payload):
    mask = os.urandom(4)
    length = len(payload)
    head = bytes([0x80 | opcode, 0x80 | length]) if length < 126 else struct.pack("!BBH", 0x80 | opcode, 0xFE, length)
    whole = int.from_bytes((mask * (length // 4 + 1))[:length], "big") ^ int.from_bytes(payload, "big")
    return head + mask + whole.to_bytes(length, "big")


class Figures:
    """What is counted over the whole run."""

    received = sent = connects = refused = notified = redis_restarts = 0
    disorder = []


class Client:
    """One connection; reads until it ends, and checks the order of each publisher."""

    def __init__(self, port, user, room):
        self.port, self.user, self.room = port, user, room
        self.seen = {}
        self.joined = asyncio.Event()

    async def connect(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(
            f"GET /ws HTTP/1.1\r\nHost: soak\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Authorization: Bearer {token(self.user)}\r\n\r\n".encode()
        )
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 30)
        Figures.connects += 1
        if b" 101 " not in head:
            Figures.refused += 1
            raise ConnectionError(head.split(b"\r\n")[0].decode())
        self.reading = asyncio.create_task(self.read())
        self.send({"type": "join", "payload": {"room": self.room}})
        await asyncio.wait_for(self.joined.wait(), 30)

    def send(self, message):
        self.writer.write(frame(1, json.dumps(message).encode()))

    def broadcast(self, number):
        Figures.sent += 1
        body = {"n": number, "filler": "x" * random.randrange(500)}
        self.send({"type": "broadcast", "payload": {"room": self.room, "body": body}})

    async def read(self):
        try:
            while True:
                opcode, length = await self.reader.readexactly(2)
                if length == 126:
                    (length,) = struct.unpack("!H", await self.reader.readexactly(2))
                elif length == 127:
                    (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
                payload = await self.reader.readexactly(length)
                if opcode == 0x81:
                    self.take(payload.decode())
                elif opcode == 0x89:
                    self.writer.write(frame(10, payload))
                elif opcode == 0x88:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    def take(self, text):
        if text.startswith("joined "):
            self.joined.set()
            return
        # Numbered or, while Redis is away, not.
        message = json.loads(text)
        if "from" in message:
            Figures.received += 1
            last, number = self.seen.get(message["from"], -1), message["body"]["n"]
            if number <= last:
                Figures.disorder.append(f"{number} after {last} of {message['from']}")
            self.seen[message["from"]] = number
        elif "event" in message:
            Figures.notified += 1

    def leave(self, how):
        if how == "close":
            self.writer.write(frame(8, struct.pack("!H", 1000)))
        elif how == "junk":
            self.writer.write(os.urandom(64))
        elif how == "reset":
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()
            return
        self.writer.close()


class Soak:
    def __init__(self, options):
        self.options = options
        self.port, self.redis_port = free_port(), free_port()
        self.stalled = []
        self.ending = False

    def start(self):
        self.log = tempfile.NamedTemporaryFile("w+", prefix="realtime-soak-", suffix=".log")
        self.start_redis()
        environment = {
            "JWT_SECRET": SECRET, "PORT": str(self.port), "BIND_ADDR": "127.0.0.1", "RATE_LIMIT": "0",
            "RATE_BYTES": "0",
            "REDIS_ADDR": f"127.0.0.1:{self.redis_port}", "WRITE_TIMEOUT": "5s", "LOG_LEVEL": "info",
        }
        self.service = subprocess.Popen([self.options.binary], env=environment, stdout=self.log, cwd="/tmp")

    def start_redis(self):
        self.redis = subprocess.Popen(
            ["redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "no"], stdout=subprocess.DEVNULL, cwd="/tmp")

    def sample(self):
        pid = self.service.pid
        status = open(f"/proc/{pid}/status").read()
        number = lambda name: int(re.search(rf"^{name}:\s+(\d+)", status, re.M).group(1))
        return {"rss_kib": number("VmRSS"), "threads": number("Threads"),
                "descriptors": len(os.listdir(f"/proc/{pid}/fd"))}

    async def http(self, method, path, body="", role="service"):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n{length}"
                     f"Authorization: Bearer {token('soak', role)}\r\n\r\n{body}".encode())
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        return answer

    async def healthy(self):
        for _ in range(300):
            try:
                if b" 200 " in await self.http("GET", "/health"):
                    return
            except OSError:
                pass
            await asyncio.sleep(0.1)
        sys.exit("the service is not healthy")

    async def member(self, n):
        """A member for the whole run, broadcasting at its share of the rate."""
        client = Client(self.port, f"u{n}", f"room:{n // ROOM_SIZE}")
        await client.connect()
        number = 0
        pause = self.options.clients / BROADCASTS
        await asyncio.sleep(random.uniform(0, pause))
        while not self.ending:
            if client.reading.done():
                raise ConnectionError(f"{client.user} was cut")
            client.broadcast(number)
            number += 1
            await asyncio.sleep(random.uniform(0.5, 1.5) * pause)
        client.leave("close")
        await asyncio.wait_for(client.reading, 30)

    async def churner(self, n):
        """Comes, joins, says a word and leaves, again and again."""
        number = 0
        while not self.ending:
            client = Client(self.port, f"c{n}", f"room:{n}")
            await client.connect()
            client.broadcast(number)
            number += 1
            await asyncio.sleep(random.uniform(0, 4))
            client.leave(random.choice(["close", "end", "reset", "junk"]))
            if client.reading:
                await asyncio.wait([client.reading], timeout=10)

    async def stall(self):
        """Stops reading, and is cut for it when the notifications fill its queue."""
        number = 0
        while not self.ending:
            client = Client(self.port, f"s{number}", "stalled")
            number += 1
            await client.connect()
            client.reading.cancel()
            client.writer.transport.pause_reading()
            filler = json.dumps({"event": "filler", "room": "stalled", "data": "x" * 60_000})
            for _ in range(40):
                await self.http("POST", "/api/notify", filler)
                await asyncio.sleep(0.05)
            await asyncio.sleep(2)
            client.writer.transport.abort()

    async def backend(self):
        while not self.ending:
            room = random.randrange(self.options.clients // ROOM_SIZE)
            batch = [{"event": "order_created", "data": {"id": 1}, "room": f"room:{room}"},
                     {"event": "hello", "user_id": f"u{random.randrange(self.options.clients)}"}]
            await self.http("POST", "/api/notify", json.dumps(batch))
            if random.random() < 0.02:
                await self.http("POST", "/api/notify", json.dumps({"event": "all", "broadcast": True}))
            await self.http("GET", "/metrics", role="admin")
            await asyncio.sleep(0.1)

    async def restarts(self):
        while not self.ending:
            await asyncio.sleep(REDIS_RESTART_SECONDS)
            self.redis.kill()
            self.redis.wait()
            await asyncio.sleep(random.uniform(0, 5))
            self.start_redis()
            Figures.redis_restarts += 1

    async def run(self):
        self.start()
        await self.healthy()
        await asyncio.sleep(2)
        rest = self.sample()
        print("at rest, start:", rest, flush=True)
        began = time.monotonic()
        tasks = []
        for n in range(self.options.clients):
            tasks.append(asyncio.create_task(self.member(n)))
            if n % 50 == 49:
                await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(self.churner(n)) for n in range(self.options.clients // 10)]
        tasks += [asyncio.create_task(job) for job in (self.stall(), self.backend())]
        restarts = asyncio.create_task(self.restarts())
        seconds = self.options.minutes * 60
        # Long enough for all stacks and buffers to have been touched, and a restart of Redis.
        warm_up = max(seconds * 0.2, REDIS_RESTART_SECONDS + 15)
        warm = await self.watch(tasks, began, warm_up)
        end = await self.watch(tasks, began, seconds)
        self.ending = True
        restarts.cancel()
        await asyncio.wait(tasks, timeout=60)
        for task in tasks:
            if not task.done() or task.exception():
                raise task.exception() if task.done() else TimeoutError("a client did not end")
        for _ in range(200):
            after = self.sample()
            if after["threads"] <= rest["threads"] and after["descriptors"] <= rest["descriptors"]:
                break
            await asyncio.sleep(0.1)
        print("at rest, end:  ", after)
        return self.verdict(rest, warm, end, after)

    async def watch(self, tasks, began, until):
        """Prints figures until then; returns the highest of the last ten seconds."""
        samples = []
        while (now := time.monotonic() - began) < until:
            done = [task for task in tasks if task.done()]
            if done:
                raise done[0].exception() or RuntimeError("a client ended early")
            samples.append(self.sample())
            if int(now) % 10 == 0:
                print(f"{now:6.0f} s  {samples[-1]}  received {Figures.received}", flush=True)
            await asyncio.sleep(1)
        return {key: max(sample[key] for sample in samples[-10:]) for key in samples[0]}

    def verdict(self, rest, warm, end, after):
        print("under load, warm:", warm, "\nunder load, end: ", end)
        print({k: v for k, v in vars(Figures).items() if isinstance(v, int)})
        problems = [f"out of order: {text}" for text in Figures.disorder[:5]]
        if end["rss_kib"] > warm["rss_kib"] * (1 + RSS_SLACK) + RSS_SLACK_KIB:
            problems.append("RSS under load has grown")
        # A stalled client's writer, and requests on their way, come and go.
        for key in ("threads", "descriptors"):
            if end[key] > warm[key] + 50:
                problems.append(f"{key} under load have grown")
            if after[key] > rest[key]:
                problems.append(f"{key} at rest have grown")
        self.service.send_signal(signal.SIGTERM)
        if self.service.wait(timeout=30) != 0:
            problems.append(f"exit code {self.service.returncode}")
        text = open(self.log.name).read()
        problems += [line for line in text.splitlines() if "panicked" in line]
        for problem in problems:
            print("PROBLEM:", problem)
        print("soak:", "failed" if problems else "nothing has grown")
        return 1 if problems else 0

    def stop(self):
        for child in (self.service, self.redis):
            if child.poll() is None:
                child.kill()
                child.wait()


def main():
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--binary", default=os.path.join(root, "target/release/realtime_service"))
    options = parser.parse_args()
    if options.minutes < 2 or options.clients < ROOM_SIZE:
        parser.error(f"at least 2 minutes and {ROOM_SIZE} clients, since memory has to settle first")
    options.binary = os.path.abspath(options.binary)
    soak = Soak(options)
    try:
        sys.exit(asyncio.run(soak.run()))
    finally:
        soak.stop()


if __name__ == "__main__":
    main()
