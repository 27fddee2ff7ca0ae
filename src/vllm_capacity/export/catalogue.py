"""Every metric exported: its name, help, labels, and how it is read off an assessment.

Collector, documentation, dashboards and alert tests all read this table.
A reading that is None leaves its series out: unknown is absent, never 0.
"""

from vllm_capacity.export.argument_metrics import ARGUMENTS
from vllm_capacity.export.engine_metrics import (
    CAPACITY,
    HEADROOM,
    LEDGER,
    OCCUPANCY,
    OUTLOOK,
    PREDICTION,
)
from vllm_capacity.export.gpu_metrics import ATTRIBUTION, GPU, GPU_MEMORY
from vllm_capacity.export.metric import Metric
from vllm_capacity.export.target_metrics import BUDGET, EXPORTER, SOURCES
from vllm_capacity.export.workload_metrics import WORKLOAD

CATALOGUE: tuple[Metric, ...] = (
    *CAPACITY,
    *OCCUPANCY,
    *HEADROOM,
    *WORKLOAD,
    *OUTLOOK,
    *LEDGER,
    *PREDICTION,
    *BUDGET,
    *ARGUMENTS,
    *GPU,
    *GPU_MEMORY,
    *ATTRIBUTION,
    *SOURCES,
    *EXPORTER,
)
