"""Bandwidth and latency between each two hosts, one rank a host, through the process group that training would use."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_ngpt.parallel.device import backend, choose_device

MEET = timedelta(seconds=20)
ROUND_TRIPS = 20
SMALLEST, LARGEST = 1 << 16, 1 << 26  # bytes of a message
LONG_ENOUGH = 0.1  # seconds of a message that tells the bandwidth


def measure(rank: int, world: int, address: str, port: int) -> dict:
    """backend: its name; links: for each other host [its rank, bytes a second, seconds one way], measured where the lower rank is.

    All hosts call it at the same time. Raises dist.DistError if they don't find each other, RuntimeError if a message does not arrive.
    """
    device = choose_device()
    carrier = backend(device)
    if world == 1:
        return {"backend": carrier, "links": []}
    store = dist.TCPStore(address, port, world, rank == 0, MEET, wait_for_workers=False)
    dist.init_process_group(carrier, store=store, rank=rank, world_size=world, timeout=MEET)
    try:
        found = []
        for pairs in rounds(world):
            peer = next((sum(pair) - rank for pair in pairs if rank in pair), None)
            if peer is not None:
                link = _link(rank, peer, device)
                found += [[peer, *link]] if rank < peer else []
            dist.barrier()
        return {"backend": carrier, "links": found}
    finally:
        dist.destroy_process_group()


def rounds(world: int) -> list[list[tuple[int, int]]]:
    """All pairs of hosts in as few rounds as there can be, each host in one pair of a round at most: a round-robin tournament."""
    players = list(range(world)) + ([None] if world % 2 else [])
    found = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        found.append([(min(pair), max(pair)) for pair in pairs if None not in pair])
        players.insert(1, players.pop())
    return found


def _link(rank: int, peer: int, device: torch.device) -> tuple[float, float]:
    """(bytes a second, seconds one way) between this host and a peer that measures the same."""
    _there_and_back(rank, peer, torch.zeros(1, device=device), 2)  # connects
    latency = _there_and_back(rank, peer, torch.zeros(1, device=device), ROUND_TRIPS)
    size = SMALLEST
    while True:
        message = torch.zeros(size, dtype=torch.uint8, device=device)
        seconds = _there_and_back(rank, peer, message, 1)
        agreed = torch.tensor([seconds], device=device)
        dist.send(agreed, peer) if rank < peer else dist.recv(agreed, peer)
        if agreed.item() > LONG_ENOUGH or size >= LARGEST:
            return size / seconds, latency
        size *= 4


def _there_and_back(rank: int, peer: int, message: torch.Tensor, times: int) -> float:
    """Seconds that the message takes one way, at best."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        for sends in (rank < peer, rank > peer):
            dist.send(message, peer) if sends else dist.recv(message, peer)
        if message.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best / 2
