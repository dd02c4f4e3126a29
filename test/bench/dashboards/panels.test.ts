/** What the bench of dashboards asks, how it names lines, and what its report says of panels that stay empty. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { answerAll, type DashboardsResult, readDashboards } from '../../../bench/dashboards/panels.ts';
import { DASHBOARDS_BENCH } from '../../../bench/dashboards/report.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { QUERIES } from '../../support/dashboards.ts';

const FOLDER = join(PACKAGE_ROOT, 'deploy/observability');

test('every query of every panel is asked once, with the interval of the scrapes in it', async () => {
  const asked: string[] = [];
  const answered = await answerAll(await readDashboards(FOLDER), '20s', async (expr) => {
    asked.push(expr);
    return [{ labels: { tenant: 'acme' }, values: [1, null] }];
  });
  expect(asked.sort()).toEqual(QUERIES.map(([, expr]) => expr.replaceAll('$__rate_interval', '20s')).sort());
  const lines = answered.flatMap(({ panels }) => panels.flatMap((panel) => panel.lines));
  expect(lines).toHaveLength(QUERIES.length);
  expect(lines.every(({ values }) => values.length === 2)).toBe(true);
  // A line is named by the labels of its series; a label that a series lacks is left out.
  const legendsOf = (title: string) => {
    const panel = answered.flatMap(({ panels }) => panels).find((each) => each.title === title)!;
    return panel.lines.map(({ legend }) => legend);
  };
  expect(legendsOf('Completions by tenant')).toEqual(['acme']);
  expect(legendsOf('Workers: usable, and what the load wants')).toEqual(['usable', 'wanted']);
});

test('a folder without dashboards is refused with the remedy', async () => {
  await expect(readDashboards(PACKAGE_ROOT)).rejects.toMatchObject({
    code: 'path_unusable',
    message: expect.stringContaining('--observability'),
  });
});

test('the report counts panels with data, names those without and says why, and draws one picture per dashboard', () => {
  const panel = (title: string, values: readonly (number | null)[]) => {
    return { title, unit: 's', lines: values.length === 0 ? [] : [{ legend: 'p50', values }] };
  };
  const panels = [panel('Search', [null, 2]), panel('Certificates end in', []), panel('Builds', [null, null])];
  const result: DashboardsResult = { stepSeconds: 5, dashboards: [{ name: 'workers', title: 'Workers', panels }] };
  const { markdown, charts } = DASHBOARDS_BENCH.report({ result });
  expect(markdown).toContain(
    '| Workers | 3 | 1 | Certificates end in (the system of this bench has no certificates), ',
  );
  expect(markdown).toContain('Builds (nothing of it happened)');
  expect(DASHBOARDS_BENCH.headline(result)).toBe('1 of 3 panels have data');
  expect(charts.map(({ name }) => name)).toEqual(['dashboards-workers']);
});
