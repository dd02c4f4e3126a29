/** `bench retrieval` and `bench index` as Markdown. */
import type { IndexResult } from '../indexing.ts';
import type { RetrievalResult } from '../retrieval.ts';
import type { Artifact } from './artifact.ts';
import { axes } from './chart.ts';
import { figure, table } from './markdown.ts';
import type { Report } from './report.ts';

export function reportRetrieval({ result }: Artifact<RetrievalResult>): Report {
  const { runs, topK, notRun } = result;
  const rows = runs.map(({ store, chunks, coldMs, warm }) => [
    store,
    String(chunks),
    figure(warm.p50),
    figure(warm.p90),
    figure(warm.p99),
    figure(coldMs),
  ]);
  const stores = [...new Set(runs.map(({ store }) => store))];
  return {
    markdown: [
      `Top ${topK}, ms per query in the gateway’s process; the first query loads the index.`,
      table(['store', 'chunks', 'p50', 'p90', 'p99', 'first'], rows),
      ...notRun,
    ].join('\n\n'),
    charts: [
      {
        name: 'retrieval',
        option: axes(`Retrieval of the top ${topK}`, 'chunks', 'p50, ms', {
          xAxis: { type: 'log', name: 'chunks', nameLocation: 'middle', nameGap: 28 },
          series: stores.map((store) => ({
            type: 'line' as const,
            name: store,
            data: runs.filter((run) => run.store === store).map(({ chunks, warm }) => [chunks, warm.p50]),
          })),
        }),
      },
    ],
  };
}

export function reportIndex({ result }: Artifact<IndexResult>): Report {
  const rows = result.runs.map(({ model, run, chunks, embedded, seconds }) => [
    model,
    run,
    String(chunks),
    String(embedded),
    figure(seconds),
    embedded === 0 ? '—' : figure(embedded / seconds),
  ]);
  return {
    markdown: table(['model', 'run', 'chunks', 'encoded', 's', 'chunks/s'], rows, ['left', 'left']),
    charts: [],
  };
}
