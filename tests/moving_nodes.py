"""A cluster of several nodes on this machine whose nodes come and go, in a process of its own.

`moving_nodes.py CPUS...` starts a head without CPUs and one node per number, prints `{"address": ...}`, and then does
what every line on its standard input says: `add CPUS`, `kill NAME` (kill -9 of the raylet), `drain NAME`, and
`where groups` (the nodes of every placement group); each answer is one line of JSON. Nodes are called `node-0`,
`node-1`, ... and offer a resource of that name.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes: dict[str, Any] = {}

    def add(cpus: str) -> dict[str, Any]:
        name = f"node-{len(nodes)}"
        nodes[name] = cluster.add_node(num_cpus=int(cpus), resources={name: 1.0})
        return {"name": name, "id": nodes[name].node_id}

    def kill(name: str) -> dict[str, Any]:
        (raylet,) = nodes[name].all_processes["raylet"]
        os.kill(raylet.process.pid, 9)
        return {"time": time.time()}

    def drain(name: str) -> dict[str, Any]:
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + 120) * 1e3)
        accepted, why = GcsClient(address=cluster.address).drain_node(nodes[name].node_id, reason, "spot", deadline)
        return {"accepted": accepted, "why": why, "time": time.time()}

    def where(_: str) -> dict[str, Any]:
        import ray
        from ray.util import placement_group_table

        ray.init(address=cluster.address, log_to_driver=False, ignore_reinit_error=True)
        names = {node.node_id: name for name, node in nodes.items()}
        groups = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
        placed = [[names.get(node, "head") for node in group["bundles_to_node_id"].values()] for group in groups]
        return {"groups": sorted(sorted(group) for group in placed)}

    verbs = {"add": add, "kill": kill, "drain": drain, "where": where}
    for cpus in sys.argv[1:]:
        add(cpus)
    print(json.dumps({"address": cluster.address}), flush=True)
    for line in sys.stdin:
        verb, argument = line.split()
        print(json.dumps(verbs[verb](argument)), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
