/**
 * What an SRE installs to watch the system: dashboards and rules are what the code renders, ask for metrics that exist,
 * and each alert has its section in the runbook, fires in the series of its drill and is silent in a soak's. The series
 * were recorded of real systems (test/support/record-series.ts).
 */
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { parse, stringify } from 'yaml';
import { countFromZero } from '../../services/gateway/completion/request-record.ts';
import { metrics } from '../../services/lib/process/metrics.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { ALERTS, EXPRESSIONS, OBJECTIVES, RECORDED, renderedRules, TTFT_SECONDS } from '../support/alert-rules.ts';
import { CHART } from '../support/chart.ts';
import { DASHBOARDS, QUERIES, renderedDashboard } from '../support/dashboards.ts';
import { metricFacts } from '../support/operations.ts';
import { promtool } from '../support/promtool.ts';

const FOLDER = join(PACKAGE_ROOT, 'deploy/observability');
const SERIES = join(PACKAGE_ROOT, 'test/goldens/series');
const RULES = join(FOLDER, 'rules.yml');
/**
 * The rules of a test of promtool, in the order of the file: left alone, promtool takes groups in any order, and alerts
 * then see what was recorded one evaluation before.
 */
const IN_ORDER = { rule_files: [RULES], group_eval_order: ['llavacode-objectives', 'llavacode-alerts'] };

/** What a histogram is scraped as. */
const SUFFIXES = ['_bucket', '_sum', '_count'];
/** Metrics of every Node process, from prom-client. */
const OF_PROCESSES = [
  'process_resident_memory_bytes',
  'process_start_time_seconds',
  'process_cpu_seconds_total',
  'nodejs_eventloop_lag_p99_seconds',
];
const EXISTING = new Set([
  ...OF_PROCESSES,
  ...RECORDED,
  ...Object.values(metrics).flatMap((metric) => {
    const { name } = metricFacts(metric);
    return metric.constructor.name === 'Histogram' ? SUFFIXES.map((suffix) => `${name}${suffix}`) : [name];
  }),
]);
const labelsOf = new Map(
  Object.values(metrics).flatMap((metric) => {
    const { name, labelNames } = metricFacts(metric);
    return [name, ...SUFFIXES.map((suffix) => `${name}${suffix}`)].map((each) => [each, labelNames] as const);
  }),
);
/** Metrics and the labels by which they are selected, of an expression. */
function askedFor(expr: string): { readonly name: string; readonly labels: readonly string[] }[] {
  const found = expr.matchAll(/\b((?:llavacode|vllm):[\w:]+|(?:gen_ai|process|nodejs)_\w+)(?:\{([^}]*)\})?/g);
  return [...found].map(([, name, select = '']) => ({
    name: name!,
    labels: [...select.matchAll(/(\w+)\s*[=!]/g)].map((match) => match[1]!),
  }));
}
/** Values that a rule selects of a label: `a|b|c` in `label=~"a|b|c"`, or the one in `label="a"`. */
const selected = (labels: string) =>
  [...labels.matchAll(/(\w+)=~?"([^"]*)"/g)].map(([, label, values]) => [label!, values!.split('|')] as const);
const ASKED = [...QUERIES, ...EXPRESSIONS].map(([title, expr]) => [title, expr] as const);

const OF_HISTOGRAM = /_(bucket|sum|count)$/;
/** The metrics whose rate an expression asks, with what it selects of them. */
const ratesIn = (expr: string) =>
  [...expr.matchAll(/\brate\(([\w:]+)(?:\{([^}]*)\})?\[/g)].map(([, name, labels]) => [name!, labels] as const);

describe('dashboards', () => {
  test.each(Object.keys(DASHBOARDS))('%s.json is what the code renders (-u renders it anew)', async (name) => {
    await expect(renderedDashboard(name)).toMatchFileSnapshot(join(FOLDER, 'dashboards', `${name}.json`));
  });

  test('there is no other dashboard in the folder, and titles of panels are not used twice in one', () => {
    const files = readdirSync(join(FOLDER, 'dashboards')).map((file) => file.replace(/\.json$/, ''));
    expect(files.sort()).toEqual(Object.keys(DASHBOARDS).sort());
    for (const { panels = [] } of Object.values(DASHBOARDS)) {
      const titles = panels.map((panel) => (panel as { title?: string }).title);
      expect(new Set(titles).size).toBe(titles.length);
    }
  });
});

describe('queries of panels and rules', () => {
  test.each(ASKED)('%s asks for metrics and labels that exist: %s', (_, expr) => {
    const asked = askedFor(expr);
    expect(asked.length).toBeGreaterThan(0);
    for (const { name, labels } of asked) {
      expect(EXISTING.has(name), name).toBe(true);
      const known = [...(labelsOf.get(name) ?? []), 'le', 'service', 'model_name', 'instance'];
      for (const label of labels) expect(known, `${name}{${label}}`).toContain(label);
    }
  });

  test('Prometheus can parse all of them', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-queries-'));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    const rules = QUERIES.map(([, expr], i) => ({
      record: `panel:query:${i}`,
      expr: expr.replaceAll('$__rate_interval', '1m'),
    }));
    await writeFile(join(dir, 'panels.yml'), stringify({ groups: [{ name: 'panels', rules }] }, { lineWidth: 0 }));
    expect(await promtool(['check', 'rules', 'panels.yml'], dir)).toContain(`${rules.length} rules found`);
  });
});

describe('rules', () => {
  test('what a rule asks the rate of is there from the start, at 0: a counter that appears at 1 has no rate', async () => {
    countFromZero('stable');
    const missing: string[] = [];
    for (const [name, labels = ''] of new Set(EXPRESSIONS.flatMap(([, expr]) => ratesIn(expr)))) {
      const metric = Object.values(metrics).find((each) => metricFacts(each).name === name.replace(OF_HISTOGRAM, ''));
      const { values } = await metric!.get();
      const series = values as readonly { readonly metricName?: string; readonly labels: object }[];
      const found = series.filter(({ metricName = name }) => metricName === name).map((each) => each.labels);
      if (found.length === 0) missing.push(name);
      for (const [label, wanted] of selected(labels)) {
        const there = found.map((each) => String((each as Record<string, unknown>)[label]));
        missing.push(
          ...wanted.filter((value) => !there.includes(value)).map((value) => `${name}{${label}="${value}"}`),
        );
      }
    }
    expect(missing).toEqual([]);
  });

  test('rules.yml, and its copy in the chart, are what the code renders (-u renders them anew), and Prometheus takes it', async () => {
    await expect(renderedRules()).toMatchFileSnapshot(RULES);
    await expect(renderedRules()).toMatchFileSnapshot(join(CHART, 'files/rules.yml'));
    expect(await promtool(['check', 'rules', RULES], FOLDER)).toMatch(/SUCCESS: \d+ rules found/);
  });

  test('every alert has a section in the runbook with what it means, what to look at and the remedy, and no other has', async () => {
    const runbook = await readFile(join(FOLDER, 'RUNBOOK.md'), 'utf8');
    const sections = runbook.split(/^## /m).slice(1);
    const names = sections.map((section) => section.split('\n')[0]!);
    expect(names.filter((name) => name.startsWith('Llavacode')).sort()).toEqual([...ALERTS].sort());
    for (const section of sections.filter((section) => section.startsWith('Llavacode'))) {
      for (const part of ['**Means.**', '**Look at.**', '**Remedy.**']) expect(section).toContain(part);
    }
  });
});

/** What fires in each scene. */
const AVAILABILITY = ['14p4x', '6x', '3x', '1x'].map((factor) => `LlavacodeAvailabilityBurn${factor}`);
const TTFT = ['14p4x', '6x', '3x', '1x'].map((factor) => `LlavacodeTtftBurn${factor}`);
const FIRES: Readonly<Record<string, readonly string[]>> = {
  soak: [],
  'no-decode-worker': ['LlavacodeNoUsableWorker', 'LlavacodeServesNothing', ...AVAILABILITY],
  'slow-prefill': TTFT,
  'store-away': ['LlavacodeStoreCircuitOpen', 'LlavacodeContextMissing', 'LlavacodeCertificateExpires'],
  'key-expires': ['LlavacodeApiKeyExpires'],
  'staged-and-stale': ['LlavacodeStagedKvStays', 'LlavacodeIndexStale'],
};

interface Recording {
  readonly everySeconds: number;
  readonly scrapes: number;
  /** Values of all scrapes, as promtool takes them. */
  readonly series: Readonly<Record<string, string>>;
}

/** A test of promtool: these series, and the names of all alerts that fire at any time in them. */
async function unitTest(scene: string, alerts: readonly string[]) {
  const file = await readFile(join(SERIES, `${scene}.json`), 'utf8');
  const { everySeconds, scrapes, series } = JSON.parse(file) as Recording;
  const end = `${Math.floor(((scrapes - 1) * everySeconds) / 30) * 30}s`;
  return {
    ...IN_ORDER,
    evaluation_interval: '30s',
    tests: [
      {
        interval: `${everySeconds}s`,
        input_series: Object.entries(series).map(([name, values]) => ({ series: name, values })),
        promql_expr_test: [
          {
            expr: `group by (alertname) (last_over_time(ALERTS{alertstate="firing"}[${end}]))`,
            eval_time: end,
            exp_samples: alerts.map((alertname) => ({ labels: `{alertname="${alertname}"}`, value: 1 })),
          },
        ],
      },
    ],
  };
}

describe('alerts', () => {
  test('every alert fires in some scene, and every scene has its series', () => {
    expect([...new Set(Object.values(FIRES).flat())].sort()).toEqual([...ALERTS].sort());
    const recorded = readdirSync(SERIES).map((file) => file.replace(/\.json$/, ''));
    expect(recorded.sort()).toEqual(Object.keys(FIRES).sort());
  });

  test.each(Object.entries(FIRES))('in the series of %s exactly these fire: %s', async (scene, alerts) => {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-rules-'));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    await writeFile(join(dir, 'test.yml'), stringify(await unitTest(scene, alerts), { lineWidth: 0 }));
    expect(await promtool(['test', 'rules', 'test.yml'], dir)).toContain('SUCCESS');
  });
});

/** An error budget that burns: no run of a real system lasts for days. */
interface Burn {
  /** Time without errors before it, long enough that the longest windows do not begin with it, in minutes. */
  readonly calm: number;
  /** How many times too fast it burns. */
  readonly factor: number;
  readonly minutes: number;
  /** Pause between two looks of the rules, in minutes. */
  readonly every: number;
  /** What fires in its last minutes; no other alert of a burn fires at any time. */
  readonly fires: readonly string[];
  /** What still fires so many minutes after its end. */
  readonly later: readonly [minutes: number, fires: readonly string[]];
}

const BURNS: Readonly<Record<string, Burn>> = {
  'a page at once': { calm: 1_800, factor: 100, minutes: 15, every: 5, fires: ['14p4x'], later: [10, []] },
  'a page within hours': { calm: 2_880, factor: 10, minutes: 255, every: 15, fires: ['6x'], later: [45, []] },
  // Three times over a day is as much of the budget as once over three days, so the slower one fires as well.
  'tickets within a day': {
    calm: 1_800,
    factor: 5,
    minutes: 960,
    every: 30,
    fires: ['1x', '3x'],
    later: [150, ['1x']],
  },
  'a ticket within days': { calm: 1_800, factor: 2.5, minutes: 2_400, every: 60, fires: ['1x'], later: [420, []] },
};

/** Two scrapes are in the shortest window, wherever it begins. */
const SCRAPE_MINUTES = 2.5;
const PER_SCRAPE = 10_000;

/** A counter as promtool takes it: what it grows by in each scrape, and for how many minutes. */
function counter(...parts: readonly (readonly [by: number, minutes: number])[]): string {
  let value = 0;
  const written = parts.map(([by, minutes]) => {
    const scrapes = minutes / SCRAPE_MINUTES;
    const from = value + by;
    value += by * scrapes;
    return `${from}+${by}x${scrapes - 1}`;
  });
  return ['0', ...written].join(' ');
}

/** A test of promtool: both objectives are missed at once. */
function burnTest({ calm, factor, minutes, every, fires, later: [wait, left] }: Burn) {
  const grows = (kept: number, missed: number) => counter([kept, calm], [missed, minutes], [kept, wait]);
  const bad = (objective: keyof typeof OBJECTIVES) => Math.round(factor * (1 - OBJECTIVES[objective]) * PER_SCRAPE);
  const [failed, late] = [bad('availability'), bad('ttft')];
  const ended = (outcome: string) => `llavacode:arm_requests_total{arm="stable",outcome="${outcome}"}`;
  const first = 'llavacode:arm_time_to_first_token_seconds';
  const firing = 'ALERTS{alertstate="firing",alertname=~".*Burn.*"}';
  const expected = (atMinutes: number, factors: readonly string[], of = firing) => ({
    expr: `group by (alertname) (${of})`,
    eval_time: `${atMinutes}m`,
    exp_samples: ['Availability', 'Ttft'].flatMap((name) =>
      factors.map((each) => ({ labels: `{alertname="Llavacode${name}Burn${each}"}`, value: 1 })),
    ),
  });
  const [end, over] = [calm + minutes, calm + minutes + wait];
  return {
    ...IN_ORDER,
    evaluation_interval: `${every}m`,
    tests: [
      {
        interval: `${60 * SCRAPE_MINUTES}s`,
        input_series: [
          { series: ended('ok'), values: grows(PER_SCRAPE, PER_SCRAPE - failed) },
          { series: ended('internal'), values: grows(0, failed) },
          { series: `${first}_count`, values: grows(PER_SCRAPE, PER_SCRAPE) },
          { series: `${first}_bucket{le="${TTFT_SECONDS}"}`, values: grows(PER_SCRAPE, PER_SCRAPE - late) },
        ],
        promql_expr_test: [
          // The short window is full of the burn by then, or nearly, and the long one is not.
          expected(calm + every * Math.floor(minutes / 3 / every), []),
          expected(end, fires),
          expected(over, left),
          expected(over, fires, `last_over_time(${firing}[${over}m])`),
        ],
      },
    ],
  };
}

describe('burn rates', () => {
  test.each(Object.entries(BURNS))(
    'after days without errors a burn leads to %s, and to nothing else',
    async (_, burn) => {
      const dir = await mkdtemp(join(tmpdir(), 'llavacode-burn-'));
      onTestFinished(() => rm(dir, { recursive: true, force: true }));
      await writeFile(join(dir, 'test.yml'), stringify(burnTest(burn), { lineWidth: 0 }));
      expect(await promtool(['test', 'rules', 'test.yml'], dir)).toContain('SUCCESS');
    },
  );

  test('each burn rate fires in one of them', () => {
    const fired = Object.values(BURNS).flatMap(({ fires }) => fires);
    expect([...new Set(fired)].sort()).toEqual(['14p4x', '1x', '3x', '6x']);
  });
});

test('docker-compose.observability.yml mounts files that exist, and each of its targets is a service of the system', async () => {
  const file = join(PACKAGE_ROOT, 'docker-compose.observability.yml');
  const { services } = parse(await readFile(file, 'utf8')) as {
    services: Record<string, { image?: string; volumes?: string[]; environment?: Record<string, string> }>;
  };
  expect(Object.keys(services)).toEqual(expect.arrayContaining(['prometheus', 'grafana', 'tempo', 'gateway']));
  for (const { volumes = [] } of Object.values(services)) {
    for (const source of volumes.map((volume) => volume.split(':')[0]!).filter((path) => path.startsWith('.'))) {
      expect(existsSync(join(PACKAGE_ROOT, source)), source).toBe(true);
    }
  }
  const base = parse(await readFile(join(PACKAGE_ROOT, 'docker-compose.yml'), 'utf8'), { merge: true }) as {
    services: Record<string, object>;
  };
  const prometheus = parse(await readFile(join(FOLDER, 'prometheus.yml'), 'utf8')) as {
    rule_files: string[];
    scrape_configs: {
      job_name: string;
      static_configs?: { targets: string[] }[];
      dns_sd_configs?: { names: string[]; port: number }[];
    }[];
  };
  const hosts = prometheus.scrape_configs.flatMap(({ static_configs = [], dns_sd_configs = [] }) => [
    ...static_configs.flatMap(({ targets }) => targets.map((target) => target.split(':')[0]!)),
    ...dns_sd_configs.flatMap(({ names }) => names),
  ]);
  expect(hosts.sort()).toEqual(['decode', 'gateway', 'indexer', 'prefill']);
  for (const host of hosts) expect(Object.keys(base.services)).toContain(host);
  expect(await promtool(['check', 'config', '--syntax-only', join(FOLDER, 'prometheus.yml')], FOLDER)).toContain(
    'SUCCESS',
  );
});
