"""What people ask of a prediction: how many requests, what context, how many GPUs, what if."""

from vllm_capacity.predict.answers.failure import PredictedFailure, predicted_failure
from vllm_capacity.predict.answers.sizing import Layout, fewest_gpus, longest_context
from vllm_capacity.predict.answers.what_if import Alternative, alternatives
from vllm_capacity.predict.answers.workload import (
    WORKLOAD_SIZES,
    SharedPrefix,
    Workload,
    WorkloadCapacity,
    full_length_capacity,
    read_workload,
    shared_prefix,
    workload_capacity,
)

__all__ = [
    "WORKLOAD_SIZES",
    "Alternative",
    "Layout",
    "PredictedFailure",
    "SharedPrefix",
    "Workload",
    "WorkloadCapacity",
    "alternatives",
    "fewest_gpus",
    "full_length_capacity",
    "longest_context",
    "predicted_failure",
    "read_workload",
    "shared_prefix",
    "workload_capacity",
]
