"""What a request of the API asks about: its parameters, the target and the engine."""

from collections.abc import Collection, Iterable, Sequence

from starlette.requests import Request

from vllm_capacity.compare.fleet import FleetAssessment, TargetAssessment
from vllm_capacity.errors import Fault
from vllm_capacity.web.problems import Problem, bad_request

_LONGEST_QUERY = 4096
_LONGEST_VALUE = 256
_MOST_NAMED = 20


def query_parameters(
    request: Request, known: Collection[str]
) -> tuple[dict[str, str], list[Fault]]:
    """The parameters that are known, each given once, and what is wrong with the others.

    Raises:
        Problem: there is more of it than any question needs.
    """
    if len(request.scope["query_string"]) > _LONGEST_QUERY:
        detail = f"The query may have {_LONGEST_QUERY} bytes."
        raise Problem(414, "URI Too Long", detail)
    given: dict[str, str] = {}
    faults: list[Fault] = []
    for name, value in request.query_params.multi_items():
        problem = _problem(name, value, known, given)
        if problem is None:
            given[name] = value
            continue
        if name not in known and all(fault.key in known for fault in faults):
            problem += f"; there are {', '.join(sorted(known))}"  # said once
        faults.append(Fault(name, value, problem))
    return given, faults


def _problem(name: str, value: str, known: Collection[str], given: Collection[str]) -> str | None:
    if name not in known:
        return "there is no such parameter"
    if name in given:
        return "is given twice"
    if not value.strip():
        return "is empty; give a value, or leave the parameter out"
    if len(value) > _LONGEST_VALUE:
        return f"must be at most {_LONGEST_VALUE} characters long"
    return None


def target_asked(
    fleet: FleetAssessment, name: str | None, faults: Sequence[Fault] = ()
) -> TargetAssessment:
    """The target of that name; without a name the only one.

    Args:
        fleet: what there is.
        name: as asked.
        faults: found so far, to be told together with a missing name.

    Raises:
        Problem: there is none, or there are several and none was named.
    """
    names = [target.target for target in fleet.targets]
    asked = _asked("target", name, names, faults)
    return next(target for target in fleet.targets if target.target == asked)


def engine_asked(name: str | None, engines: Iterable[str], faults: Sequence[Fault] = ()) -> str:
    """The engine of that name; without a name the only one.

    Args:
        name: as asked.
        engines: that there are.
        faults: found so far, to be told together with a missing name.

    Raises:
        Problem: there is none, or there are several and none was named.
    """
    return _asked("engine", name, sorted(set(engines)), faults)


def _asked(kind: str, name: str | None, there: Sequence[str], faults: Sequence[Fault]) -> str:
    if name is None and len(there) > 1:
        missing = Fault(kind, None, f"is missing; there are {_listed(there)}")
        raise bad_request([*faults, missing])
    if name is None and there:
        return there[0]
    if name is None or name not in there:
        detail = f"There is no such {kind}; there are {_listed(there)}."
        raise Problem(404, f"Unknown {kind}", detail, [Fault(kind, name, "is not known")])
    return name


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    shown = ", ".join(names[:_MOST_NAMED]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown
