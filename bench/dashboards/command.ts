/** The command `llavacode bench dashboards`. */
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { DRILL_OPTIONS, option, type ParsedOptions, positive, text } from '../options.ts';

export const DASHBOARDS_COMMAND = {
  name: 'dashboards',
  description: 'asks every query of the dashboards of a Prometheus that scrapes a system with load and losses',
  options: {
    minutes: option('<n>', 'duration in minutes', positive, 6),
    prometheus: option('<file>', 'the program prometheus', text, 'prometheus'),
    observability: option(
      '<dir>',
      'folder of dashboards/ and rules.yml',
      text,
      join(PACKAGE_ROOT, 'deploy', 'observability'),
      'deploy/observability of the repository',
    ),
    ...DRILL_OPTIONS,
  },
};
export type DashboardsOptions = ParsedOptions<typeof DASHBOARDS_COMMAND>;
