/** The panels of Grafana's dashboards as the files say them, and what a Prometheus answers to each. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Answered } from './prometheus.ts';

const DASHBOARDS = ['service-level', 'pools', 'retrieval', 'workers'] as const;

interface Panel {
  readonly title: string;
  /** As Grafana names units: s, bytes, percentunit, … */
  readonly unit: string;
  readonly queries: readonly { readonly expr: string; readonly legend: string }[];
}

interface Dashboard {
  readonly name: (typeof DASHBOARDS)[number];
  readonly title: string;
  readonly panels: readonly Panel[];
}

/** One line of a panel: a value per step, null where there was none. */
interface Line {
  readonly legend: string;
  readonly values: readonly (number | null)[];
}

export interface AnsweredPanel extends Pick<Panel, 'title' | 'unit'> {
  readonly lines: readonly Line[];
}

export interface AnsweredDashboard extends Pick<Dashboard, 'name' | 'title'> {
  readonly panels: readonly AnsweredPanel[];
}

export interface DashboardsResult {
  /** Seconds between two values of a line. */
  readonly stepSeconds: number;
  readonly dashboards: readonly AnsweredDashboard[];
}

const TARGET = z.object({ expr: z.string(), legendFormat: z.string() });
const FILE = z.object({
  title: z.string(),
  panels: z.array(
    z.object({
      type: z.string(),
      title: z.string(),
      fieldConfig: z.object({ defaults: z.object({ unit: z.string() }) }).optional(),
      targets: z.array(TARGET).default([]),
    }),
  ),
});

/** @throws ServingError path_unusable if a file is not there, or is not a dashboard of time series. */
export async function readDashboards(folder: string): Promise<Dashboard[]> {
  return Promise.all(
    DASHBOARDS.map(async (name) => {
      const path = join(folder, 'dashboards', `${name}.json`);
      try {
        const { title, panels } = FILE.parse(JSON.parse(await readFile(path, 'utf8')));
        return {
          name,
          title,
          panels: panels
            .filter(({ type }) => type !== 'row')
            .map(({ title, fieldConfig, targets }) => ({
              title,
              unit: fieldConfig?.defaults.unit ?? 'short',
              queries: targets.map(({ expr, legendFormat }) => ({ expr, legend: legendFormat })),
            })),
        };
      } catch (error) {
        throw new ServingError('path_unusable', `${path} is not a dashboard: name the folder with --observability`, {
          cause: error,
        });
      }
    }),
  );
}

/** A name of a line, as Grafana makes it: `{{label}}` is the label's value. */
const legendOf = (format: string, labels: Readonly<Record<string, string>>): string =>
  format.replaceAll(/\{\{\s*(\w+)\s*\}\}/g, (_, label: string) => labels[label] ?? '').trim();

/** Asks all queries of all panels, each with the interval that Grafana would take for `$__rate_interval`. */
export async function answerAll(
  dashboards: readonly Dashboard[],
  rateInterval: string,
  ask: (expr: string) => Promise<readonly Answered[]>,
): Promise<AnsweredDashboard[]> {
  const answered: AnsweredDashboard[] = [];
  for (const { name, title, panels } of dashboards) {
    const lines = async ({ queries }: Panel): Promise<Line[]> => {
      const found: Line[] = [];
      for (const { expr, legend } of queries) {
        for (const { labels, values } of await ask(expr.replaceAll('$__rate_interval', rateInterval)))
          found.push({ legend: legendOf(legend, labels), values });
      }
      return found;
    };
    const of: AnsweredPanel[] = [];
    for (const panel of panels) of.push({ title: panel.title, unit: panel.unit, lines: await lines(panel) });
    answered.push({ name, title, panels: of });
  }
  return answered;
}
