// Draws one dashboard from its JSON with Grafana's own panel components and a real Prometheus.
// What Grafana publishes no component for is drawn here: state timelines and annotation lines.
import {
  applyFieldOverrides, createDataFrame, createTheme, dateTime, EventBusSrv, Field, FieldConfigOptionsRegistry,
  FieldType, getFieldDisplayName, getFieldDisplayValues, GrafanaTheme2, identityOverrideProcessor, standardTransformers,
  standardTransformersRegistry, ThemeContext, TimeRange, transformDataFrame, DataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, PanelContextProvider, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import React, { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { firstValueFrom } from 'rxjs';

const asked = new URLSearchParams(location.search);
const [from, to] = [Number(asked.get('from')), Number(asked.get('to'))];
const CELL = 30, GAP = 8, WIDTH = Number(asked.get('width'));
const theme = createTheme({ colors: { mode: asked.get('theme') as 'dark' | 'light' } });
const range: TimeRange = { from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: '', to: '' } };

standardTransformersRegistry.setInit(() =>
  [...new Map(Object.values(standardTransformers).map((t) => [t.id, t])).values()].map((t) => ({ id: t.id, name: t.name, transformation: () => Promise.resolve(t) }) as never));

const PROPERTIES = ['unit', 'decimals', 'min', 'max', 'noValue', 'thresholds', 'mappings', 'color', 'displayName', 'links', 'filterable'];

/** Field options that the board uses, standard and custom, taken as they stand. */
function registry(fieldConfig: any): FieldConfigOptionsRegistry {
  const custom = (value: any, path = ''): string[] => value && typeof value === 'object' && !Array.isArray(value)
    ? Object.entries(value).flatMap(([key, v]) => custom(v, path ? `${path}.${key}` : key)) : [path];
  const ids = new Set([...PROPERTIES, ...custom(fieldConfig.defaults.custom).filter(Boolean).map((p) => `custom.${p}`),
    ...fieldConfig.overrides.flatMap((o: any) => o.properties.map((p: any) => p.id))]);
  return new FieldConfigOptionsRegistry(() => [...ids].map((id) => ({
    id, path: id.replace(/^custom\./, ''), isCustom: id.startsWith('custom.'), name: id,
    process: identityOverrideProcessor, shouldApply: () => true, override: null, editor: null,
  }) as never));
}

/** The text as Grafana sends it, with every variable at the chosen value, else at "all". */
function interpolated(text: string, board: any): string {
  return text.replaceAll('$__rate_interval', '15s').replace(/\$(\w+)/g, (whole, name) =>
    {
    const variable = board.templating.list.find((v: any) => v.name === name);
    return variable ? asked.get(`var-${name}`) ?? variable.allValue ?? '.*' : whole;
  });
}

async function ask(path: string, parameters: Record<string, string>): Promise<any[]> {
  const answer = await (await fetch(`/api/v1/${path}?${new URLSearchParams(parameters)}`)).json();
  if (answer.status !== 'success') {
    throw new Error(`${parameters.query}: ${answer.error}`);
  }
  return answer.data.result;
}

const named = (legend: string, labels: Record<string, string>) => legend.replace(/\{\{(\w+)\}\}/g, (_, l) => labels[l] ?? '').replace(/ +/g, ' ').trim();
const numbers = (values: any[]) => values.map(([, v]) => Number(v));

async function frames(target: any, board: any, width: number): Promise<DataFrame[]> {
  const query = interpolated(target.expr, board);
  if (target.instant) {
    const rows = await ask('query', { query, time: String(to) });
    if (target.format === 'table') {
      const labels = [...new Set(rows.flatMap((r) => Object.keys(r.metric)))].sort();
      return rows.length === 0 ? [] : [createDataFrame({
        refId: target.refId, fields: [
          { name: 'Time', type: FieldType.time, values: rows.map((r) => r.value[0] * 1000) },
          ...labels.map((name) => ({ name, type: FieldType.string, values: rows.map((r) => r.metric[name] ?? '') })),
          { name: `Value #${target.refId}`, type: FieldType.number, values: rows.map((r) => Number(r.value[1])) },
        ] })];
    }
    return rows.map((r) => series(target, r.metric, [r.value]));
  }
  const step = Math.max(1, Math.ceil((to - from) / width));
  const rows = await ask('query_range', { query, start: String(from), end: String(to), step: String(step) });
  return rows.map((r) => series(target, r.metric, withGaps(r.values, step)));
}

/** Nulls where Prometheus has no value, so that a gap is drawn as one. */
function withGaps(values: any[], step: number): any[] {
  return values.flatMap((v, i) => i > 0 && v[0] - values[i - 1][0] > 1.5 * step ? [[values[i - 1][0] + step, NaN], v] : [v]);
}

function series(target: any, labels: Record<string, string>, values: any[]): DataFrame {
  const displayNameFromDS = named(target.legendFormat, labels);
  const shown = numbers(values).map((v) => (Number.isNaN(v) ? null : v));
  return createDataFrame({ refId: target.refId, name: displayNameFromDS, fields: [
    { name: 'Time', type: FieldType.time, values: values.map(([t]) => t * 1000), config: {} },
    { name: 'Value', type: FieldType.number, labels, values: shown, config: { displayNameFromDS } },
  ] });
}

async function data(panel: any, board: any, width: number): Promise<DataFrame[]> {
  const got = (await Promise.all(panel.targets.map((t: any) => frames(t, board, width)))).flat();
  const tables = panel.targets.filter((t: any) => t.format === 'table').length;
  if (tables === 1) {
    got.forEach((f) => f.fields.forEach((field) => { field.name = field.name.replace(/^Value #\w$/, 'Value'); }));
  }
  const transformed = await firstValueFrom(transformDataFrame(panel.transformations, got));
  const applied = applyFieldOverrides({ data: transformed, fieldConfig: structuredClone(panel.fieldConfig), theme, timeZone: 'utc',
    replaceVariables: (text) => text, fieldConfigRegistry: registry(panel.fieldConfig) });
  applied.forEach((frame) => frame.fields.forEach((field) => getFieldDisplayName(field, frame, applied)));  // tables read the cached name
  return applied;
}

type Marks = Array<{ color: string; times: number[] }>;

/** Annotations, one mark where a series of the query begins. */
async function marks(board: any): Promise<Marks> {
  return Promise.all(board.annotations.list.map(async (a: any) => ({
    color: theme.visualization.getColorByName(a.iconColor),
    times: (await ask('query_range', { query: interpolated(a.expr, board), start: String(from), end: String(to), step: '5' }))
      .map((r) => r.values[0][0]).filter((t) => t > from + 5),
  })));
}

const Empty = ({ text }: { text: string }) =>
  <div style={{ height: '100%', display: 'grid', placeItems: 'center', textAlign: 'center', color: theme.colors.text.secondary }}>{text}</div>;

function Stats({ panel, found, width, height }: any) {
  const values = getFieldDisplayValues({ fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions, theme,
    replaceVariables: (text) => text, data: found, sparkline: panel.options.graphMode !== 'none', timeZone: 'utc' });
  return <VizRepeater getValues={() => values} source={found} width={width} height={height} renderCounter={0} orientation={panel.options.orientation as never}
    autoGrid itemSpacing={3} renderValue={({ value, width: w, height: h, count }: any) =>
      <BigValue value={value.display} sparkline={value.sparkline} width={w} height={h} theme={theme} count={count} colorMode={panel.options.colorMode}
        graphMode={panel.options.graphMode} justifyMode={panel.options.justifyMode} textMode={panel.options.textMode} wideLayout />} />;
}

/** Not Grafana's: it publishes no state timeline. Runs of one value, in its mapping's colour and word. */
function StateTimeline({ found, width, height }: any) {
  const fields: Array<[DataFrame, Field]> = found.flatMap((f: DataFrame) => f.fields.filter((x) => x.type !== FieldType.time).map((x) => [f, x]));
  const left = Math.min(width * 0.5, 8 + 6.4 * Math.max(...fields.map(([f, x]) => getFieldDisplayName(x, f, found).length)));
  const x = (t: number) => left + ((t / 1000 - from) / (to - from)) * (width - left);
  const row = (height - 18) / fields.length;
  return <svg width={width} height={height} fontSize={11} fontFamily={theme.typography.fontFamily}>
    {fields.map(([frame, field], i) => {
      const times = frame.fields[0].values, runs: Array<[number, number]> = [];
      field.values.forEach((v, j) => {
        if (v !== null && (j === 0 || v !== field.values[j - 1])) { runs.push([j, j + 1]); } else if (v !== null) { runs[runs.length - 1][1] = j + 1; }
      });
      const y = i * row + row * 0.1;
      return <g key={i}>
        <text x={left - 6} y={y + row * 0.4} dominantBaseline="central" textAnchor="end" fill={theme.colors.text.primary}>{getFieldDisplayName(field, frame, found)}</text>
        {runs.map(([a, b]) => {
          const shown = field.display!(field.values[a]), [x0, x1] = [x(times[a]), x(times[Math.min(b, times.length - 1)])];
          return <g key={a}><rect x={x0} y={y} width={Math.max(1, x1 - x0)} height={row * 0.8} fill={shown.color} fillOpacity={0.85} />
            {x1 - x0 > 7 * shown.text.length && <text x={x0 + 4} y={y + row * 0.4} dominantBaseline="central" fill={theme.colors.getContrastText(shown.color!)}>{shown.text}</text>}</g>;
        })}</g>;
    })}
    {[0, 1, 2, 3, 4].map((k) => <text key={k} x={left + (k / 4) * (width - left)} y={height - 4} textAnchor={k === 4 ? 'end' : 'start'}
      fill={theme.colors.text.secondary}>{dateTime((from + (k / 4) * (to - from)) * 1000).utc().format('HH:mm:ss')}</text>)}
  </svg>;
}

function drawMarks(all: Marks) {
  return (config: any) => {
    if (!config.marked) {
      config.marked = true;
      config.addHook('draw', (u: any) => all.forEach(({ color, times }) => times.forEach((t) => {
        const x = u.valToPos(t * 1000, 'x', true);
        Object.assign(u.ctx, { strokeStyle: color, lineWidth: 1.5 });
        u.ctx.setLineDash([4, 3]);
        u.ctx.beginPath();
        u.ctx.moveTo(x, u.bbox.top);
        u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
        u.ctx.stroke();
        u.ctx.setLineDash([]);
      })));
    }
    return null;
  };
}

function Content({ panel, found, marked, width, height }: any) {
  if (found.every((f: DataFrame) => f.length === 0)) {
    return <Empty text={panel.fieldConfig.defaults.noValue} />;
  }
  switch (panel.type) {
    case 'stat': return <Stats {...{ panel, found, width, height }} />;
    case 'state-timeline': return <StateTimeline {...{ found, width, height }} />;
    case 'table': return <TableNG data={found[0]} width={width} height={height} {...panel.options} onCellFilterAdded={undefined} noValue={panel.fieldConfig.defaults.noValue} />;
    default: return <TimeSeries frames={found} width={width} height={height} timeRange={range} timeZone="utc" legend={{ showLegend: true, ...panel.options.legend }} options={panel.options}>
      {drawMarks(marked)}</TimeSeries>;
  }
}

function Panel({ panel, board, marked, done }: any) {
  const { x, y, w, h } = panel.gridPos, column = (WIDTH - GAP) / 24;
  const place = { position: 'absolute' as const, left: GAP + x * column, top: y * (CELL + GAP), width: w * column - GAP, height: h * (CELL + GAP) - GAP };
  const [found, setFound] = useState<DataFrame[]>();
  useEffect(() => { panel.type !== 'row' && data(panel, board, place.width).then(setFound, (e) => { console.error(`${panel.title}: ${e.stack}`); setFound([]); }).finally(done); }, []);
  if (panel.type === 'row') {
    return <div style={{ ...place, ...theme.typography.h5, color: theme.colors.text.primary, lineHeight: '30px' }}>{panel.title}</div>;
  }
  return <div style={place} data-panel={panel.title}><PanelContextProvider value={{ eventsScope: 'board', eventBus: new EventBusSrv() } as never}>
    <PanelChrome title={panel.title.replace(/\$(\w+)/, (_: string, name: string) => asked.get(`var-${name}`) ?? 'All')} description={panel.description} width={place.width} height={place.height}>
      {(width, height) => found ? <Content {...{ panel, found, marked, width, height }} /> : <span />}
    </PanelChrome></PanelContextProvider></div>;
}

function Board({ board, marked }: any) {
  const height = Math.max(...board.panels.map((p: any) => p.gridPos.y + p.gridPos.h)) * (CELL + GAP);
  let open = board.panels.filter((p: any) => p.type !== 'row').length;
  const done = () => { if (--open === 0) { setTimeout(() => { document.title = 'drawn'; }, 1500); } };
  return <ThemeContext.Provider value={theme as GrafanaTheme2}><GlobalStyles />
    <div style={{ ...theme.typography.h4, color: theme.colors.text.primary, padding: `8px ${GAP}px 0` }}>{board.title}</div>
    <div id="board" style={{ position: 'relative', height, background: theme.colors.background.canvas }}>
      {board.panels.map((panel: any) => <Panel key={panel.id} {...{ panel, board, marked }} done={panel.type === 'row' ? () => {} : done} />)}
    </div></ThemeContext.Provider>;
}

const board = await (await fetch(`/dashboards/${asked.get('board')}.json`)).json();
document.body.style.margin = '0';
document.body.style.background = theme.colors.background.canvas;
createRoot(document.getElementById('root')!).render(<Board board={board} marked={await marks(board)} />);
