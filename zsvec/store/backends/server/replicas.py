"""Where the copies of a collection are, as the consensus of a cluster says, and what follows for requests to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qdrant_client import models

Consistency = models.ReadConsistencyType | int


@dataclass(frozen=True, slots=True)
class Replicas:
    """The copies of each shard of a collection.

    Attributes:
        shards: For each, the peers that have a copy, and whether that is active.
    """

    shards: Sequence[Mapping[int, bool]]

    @classmethod
    def of(cls, info: models.CollectionClusterInfo) -> Replicas:
        """As a node says."""
        shards: dict[int, dict[int, bool]] = defaultdict(dict)
        for local in info.local_shards:
            shards[local.shard_id][info.peer_id] = local.state == models.ReplicaState.ACTIVE
        for remote in info.remote_shards:
            shards[remote.shard_id][remote.peer_id] = remote.state == models.ReplicaState.ACTIVE
        return cls([shards[number] for number in sorted(shards)])

    @property
    def copied(self) -> bool:
        """Whether there is a shard with several copies."""
        return any(len(peers) > 1 for peers in self.shards)

    @property
    def settled(self) -> bool:
        """Whether a peer that is not active in one shard is not in any."""
        away = {peer for peers in self.shards for peer, active in peers.items() if not active}
        return not any(active for peers in self.shards for peer, active in peers.items() if peer in away)

    @property
    def paired(self) -> bool:
        """Whether there is a shard with two copies: a quorum of these is both."""
        return any(len(peers) == 2 for peers in self.shards)

    @property
    def consistency(self) -> Consistency:
        """Of reads.

        A majority of all copies where there are three or more and all are active: it needs every one of them, and gives
        what most have. Else a quorum, which reads as few as make a majority and leaves out what these differ in. One
        copy where there are two and the other is known not to be active: a write is acknowledged by all that are.
        """
        if any(len(peers) == 2 and sum(peers.values()) == 1 for peers in self.shards):
            return 1
        if any(len(peers) > 2 for peers in self.shards) and all(all(peers.values()) for peers in self.shards):
            return models.ReadConsistencyType.MAJORITY
        return models.ReadConsistencyType.QUORUM

    @property
    def ordering(self) -> models.WriteOrdering:
        """Of conditional writes: by the highest peer, which is their leader dead or alive, unless it is not active."""
        led = all(peers[max(peers)] for peers in self.shards if peers)
        return models.WriteOrdering.STRONG if led else models.WriteOrdering.MEDIUM


UNKNOWN = Replicas(())
"""Where a node does not say."""
