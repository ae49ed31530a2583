"""The undocumented part of botocore that Buttress uses."""

from __future__ import annotations

from functools import cache


@cache
def ec2_launch_parameters() -> frozenset[str]:
    """Returns the parameters of EC2's RunInstances, from botocore's own data; empty where it is not installed."""
    try:
        import botocore.session
    except ImportError:
        return frozenset()
    service = botocore.session.Session().get_service_model("ec2")
    return frozenset(service.operation_model("RunInstances").input_shape.members)
