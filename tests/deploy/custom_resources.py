"""Check custom resources by models made from their definitions' own schemas.

Reads a JSON list of objects, prints one line for each fault. Run by a Python that has
cloudcoil-models-keda and cloudcoil-models-prometheus-operator; their pytest plugin and their
versions of other packages stay out of the project's environment.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator

MODELS = {
    "PodMonitor": prometheus_operator.PodMonitor,
    "PrometheusRule": prometheus_operator.PrometheusRule,
    "ScaledObject": keda.ScaledObject,
}
#: Fields newer than those models (KEDA 2.16): each with the words that it may hold.
NEWER = {("ScaledObject", "fallback", "behavior"): {"currentReplicasIfHigher"}}


def faults(resource: dict[str, Any]) -> list[str]:
    """What the models do not take, and what they drop since they do not know it."""
    kind = resource["kind"]
    found = []
    for (of_kind, outer, inner), allowed in NEWER.items():
        if of_kind == kind and inner in (holder := resource["spec"].get(outer, {})):
            value = holder.pop(inner)
            if value not in allowed:
                found.append(f"{kind}: {outer}.{inner} is {value}")
    try:
        model = MODELS[kind].model_validate(resource)
    except ValueError as error:
        return [*found, f"{kind}: {error}"]
    understood = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return found + [f"{kind}: {path} is not known" for path in _lost(resource, understood)]


def _lost(given: Any, kept: Any, path: str = "") -> list[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        pairs = [(name, value, kept.get(name)) for name, value in given.items()]
        return [
            lost for name, value, other in pairs for lost in _lost(value, other, f"{path}.{name}")
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = [(index, value, kept[index]) for index, value in enumerate(given)]
        return [lost for i, value, other in pairs for lost in _lost(value, other, f"{path}[{i}]")]
    return [] if given == kept else [path]


if __name__ == "__main__":
    all_faults = [fault for resource in json.load(sys.stdin) for fault in faults(resource)]
    sys.stdout.write("\n".join(all_faults))
