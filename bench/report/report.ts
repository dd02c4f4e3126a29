/** What a bench shows of an artifact: Markdown, and charts that it refers to by name. */
import type { Chart } from './chart.ts';

export interface Report {
  readonly markdown: string;
  readonly charts: readonly Chart[];
}
