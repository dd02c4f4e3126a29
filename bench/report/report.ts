/**
 * The facts that a bench states about itself: each bench exports one {@link Bench} beside its measuring code.
 */
import type { Artifact, Definitions } from './artifact.ts';
import type { Chart } from './chart.ts';

export interface Report {
  readonly markdown: string;
  /** Charts that the page shows below the text. */
  readonly charts: readonly Chart[];
}

export interface Bench<Result> {
  /** The word after `llavacode bench`. Artifacts are named after it unless the user gives a name. */
  readonly name: string;
  readonly title: string;
  readonly definitions: Definitions;
  report(artifact: Pick<Artifact<Result>, 'result'>): Report;
  /** The figure that stands for the bench in the overview, as a short phrase of Markdown. */
  headline(result: Result): string;
}
