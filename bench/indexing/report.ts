/** The report of `bench index`. */
import { figure, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { IndexingRun, IndexResult } from './measure.ts';

const chunksPerSecond = ({ embedded, seconds }: IndexingRun) => (embedded === 0 ? '—' : figure(embedded / seconds));

export const INDEX: Bench<IndexResult> = {
  name: 'index',
  title: 'Indexing',
  definitions: {
    encoded: 'chunks that went through encoder and projector; the index held the others already',
    'chunks/s': 'chunks encoded / s of the run, without the time to load the encoder',
  },
  report: ({ result }) => reportIndex(result),
  headline: ({ runs }) =>
    runs
      .filter(({ run }) => run === 'first')
      .map((run) => `${chunksPerSecond(run)} chunks/s with ${run.model}`)
      .join(', '),
};

function reportIndex({ runs }: IndexResult): Report {
  const rows = runs.map((run) => [
    run.model,
    run.run,
    String(run.chunks),
    String(run.embedded),
    figure(run.seconds),
    chunksPerSecond(run),
  ]);
  return {
    markdown: table(['model', 'run', 'chunks', 'encoded', 's', 'chunks/s'], rows, ['left', 'left']),
    charts: [],
  };
}
