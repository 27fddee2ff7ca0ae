"""Grafana's dashboard JSON from small builders; nothing here knows what is shown.

Schema: Grafana's dashboard model, schemaVersion 42.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 42
COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One PromQL expression and how its series are called."""

    expr: str
    legend: str = ""
    instant: bool = False

    def target(self, ref_id: str) -> Json:
        """The query as a panel's target."""
        return {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": self.expr,
            "format": "table" if self.instant and not self.legend else "time_series",
            "instant": self.instant,
            "legendFormat": self.legend,
            "range": not self.instant,
            "refId": ref_id,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One panel, before it has a place on the grid.

    Attributes:
        unit: one of Grafana's value formats, as in ``bytes`` or ``percentunit``.
        no_data: what stands there when no series answers; never a number.
        steps: colour from each value on; None is the base.
        default: more of ``fieldConfig.defaults``.
        repeat: the variable for each of whose values the panel is shown once.
    """

    title: str
    kind: str
    description: str
    queries: tuple[Query, ...]
    unit: str
    no_data: str
    width: int
    height: int
    steps: tuple[tuple[float | None, str], ...] = ((None, "text"),)
    default: Json = field(default_factory=dict)
    overrides: tuple[Json, ...] = ()
    options: Json = field(default_factory=dict)
    transformations: tuple[Json, ...] = ()
    links: tuple[Json, ...] = ()
    repeat: str | None = None

    def build(self, panel_id: int, x: int, y: int) -> Json:
        """The panel at its place."""
        steps = [{"color": color, "value": value} for value, color in self.steps]
        return {
            "id": panel_id,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {
                "defaults": {
                    "unit": self.unit,
                    "noValue": self.no_data,
                    "thresholds": {"mode": "absolute", "steps": steps},
                    **self.default,
                },
                "overrides": list(self.overrides),
            },
            "options": self.options,
            "targets": [q.target(chr(ord("A") + i)) for i, q in enumerate(self.queries)],
            "transformations": list(self.transformations),
            "links": list(self.links),
            **(
                {}
                if self.repeat is None
                else {"repeat": self.repeat, "repeatDirection": "h", "maxPerRow": 2}
            ),
        }


def override(matcher: str, name: str, **properties: Any) -> Json:
    """Properties for the fields that a matcher (``byName``, ``byRegexp``, …) selects.

    A double underscore in a property's name stands for the dot in Grafana's.
    """
    return {
        "matcher": {"id": matcher, "options": name},
        "properties": [{"id": k.replace("__", "."), "value": v} for k, v in properties.items()],
    }


def value_texts(texts: dict[str, tuple[str, str]]) -> list[Json]:
    """Mappings from a value to its text and colour."""
    options = {
        value: {"text": text, "color": color, "index": i}
        for i, (value, (text, color)) in enumerate(texts.items())
    }
    return [{"type": "value", "options": options}]


def link(title: str, url: str) -> Json:
    """A link that opens beside the dashboard."""
    return {"title": title, "url": url, "targetBlank": True}


def stat(title: str, query: Query, **rest: Any) -> Panel:
    """The last value of each series, large, over its background colour."""
    options = {
        "colorMode": "background_solid",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
        "wideLayout": True,
    }
    return Panel(
        title=title,
        kind="stat",
        queries=(query,),
        options=options,
        **{"width": 4, "height": 4, "default": {}, **rest},
    )


def state_timeline(title: str, *queries: Query, **rest: Any) -> Panel:
    """A row for each series, coloured by what its value means."""
    options = {
        "showValue": "auto",
        "mergeValues": True,
        "rowHeight": 0.85,
        "alignValue": "left",
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "single"},
    }
    drawn = {"fillOpacity": 85, "lineWidth": 0, "spanNulls": False}
    return Panel(
        title=title,
        kind="state-timeline",
        queries=queries,
        options=options,
        **{"unit": "none", **rest, "default": {"custom": drawn, **rest.get("default", {})}},
    )


def timeseries(
    title: str,
    *queries: Query,
    custom: Json | None = None,
    default: Json | None = None,
    last: bool = True,
    **rest: Any,
) -> Panel:
    """Lines over time; a gap in the data stays a gap. ``last``: legends end with the last value."""
    drawn = {
        "drawStyle": "line",
        "fillOpacity": 0,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        **(custom or {}),
    }
    options = {
        "legend": {
            "calcs": ["lastNotNull"] if last else [],
            "displayMode": "list",
            "placement": "bottom",
            "showLegend": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel(
        title=title,
        kind="timeseries",
        queries=queries,
        default={"custom": drawn, "color": {"mode": "palette-classic"}, **(default or {})},
        options=options,
        **{"width": 12, "height": 8, **rest},
    )


def table(title: str, *queries: Query, **rest: Any) -> Panel:
    """Instant values, one row for each set of labels."""
    options = {"cellHeight": "sm", "showHeader": True, "footer": {"show": False}}
    # What the whole panel says without data would stand in every empty cell.
    empty_cell = override("byRegexp", "/.*/", noValue="–")
    overrides = (empty_cell, *rest.pop("overrides", ()))
    default = rest.pop("default", {})
    return Panel(
        title=title,
        kind="table",
        queries=queries,
        options=options,
        overrides=overrides,
        default={
            **default,
            "custom": {"minWidth": 70, "wrapHeaderText": True, **default.get("custom", {})},
        },
        **rest,
    )


def query_variable(
    name: str, label: str, expr: str, *, all_value: str = ".+", one: bool = False
) -> Json:
    """A variable of several label values, all of them at first; or of exactly one."""
    several = {
        "multi": True,
        "includeAll": True,
        "allValue": all_value,
        "current": {"text": ["All"], "value": ["$__all"]},
    }
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": expr,
        "query": {"query": expr, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        **({"multi": False, "includeAll": False, "current": {}} if one else several),
    }


def datasource_variable() -> Json:
    """The Prometheus to ask."""
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "current": {},
        "hide": 0,
    }


def annotation(name: str, color: str, expr: str, title: str) -> Json:
    """Marks on every graph where the expression has a value."""
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "expr": expr,
        "iconColor": color,
        "titleFormat": title,
        "step": "60s",
    }


def place(rows: tuple[tuple[str, tuple[Panel, ...]], ...]) -> list[Json]:
    """Panels row by row, left to right, under the heading of their row."""
    placed: list[Json] = []
    y = 0
    for heading, panels in rows:
        placed.append(_row(heading, len(placed) + 1, y))
        x, y, tallest = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            placed.append(panel.build(len(placed) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return placed


def _row(heading: str, panel_id: int, y: int) -> Json:
    place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
    return {
        "id": panel_id,
        "type": "row",
        "title": heading,
        "collapsed": False,
        "gridPos": place,
        "panels": [],
    }
