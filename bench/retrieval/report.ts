/** `bench retrieval`, `bench recall` and `bench index` as Markdown. */
import type { IndexResult } from '../indexing/measure.ts';
import type { Artifact } from '../report/artifact.ts';
import { axes } from '../report/chart.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Report } from '../report/report.ts';
import type { RetrievalResult } from './measure.ts';
import type { RecallResult } from './recall.ts';

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

export function reportRecall({ result: { quality, scale, throughput, threads } }: Artifact<RecallResult>): Report {
  const names = Object.keys(quality[0]?.recallAt10 ?? {}) as (keyof (typeof quality)[number]['recallAt10'])[];
  const questions = quality.reduce((sum, row) => sum + row.questions, 0);
  const mean = (name: (typeof names)[number]) =>
    quality.reduce((sum, row) => sum + row.recallAt10[name] * row.questions, 0) / Math.max(questions, 1);
  const recall = table(
    ['repository', 'chunks', 'questions', ...names],
    [
      ...quality.map((row) => [
        ...[row.repository, String(row.chunks), String(row.questions)],
        ...names.map((name) => percent(row.recallAt10[name], 1)),
      ]),
      ['**all**', '', String(questions), ...names.map((name) => `**${percent(mean(name), 1)}**`)],
    ],
  );
  const cost = table(
    ['retriever', 'chunks', 'p50, ms', 'p99, ms', 'bytes per chunk', 'build, s'],
    scale.map(({ retriever, chunks, p50Ms, p99Ms, bytesPerChunk, buildSeconds }) => [
      ...[retriever, chunks.toLocaleString('en'), figure(p50Ms), figure(p99Ms)],
      ...[bytesPerChunk.toFixed(0), figure(buildSeconds)],
    ]),
  );
  const sections = [
    'Recall@10 of the chunk that defines an identifier which three held-out lines of a function use, among the chunks of all ' +
      'other files. The query is the text around the hole (10 non-blank lines before, 5 after); the lines themselves are not seen.',
    recall,
    "One top-10 search on one core, and the memory of the index, identifiers' names included. Up to the number of chunks that " +
      'the dependencies of this package have, chunks are real; beyond, they are repeated with other names.',
    cost,
    `Encoder and projector: ${figure(throughput.chunksPerSecond)} chunks/s on ${threads} threads (${throughput.chunks} chunks in ${figure(throughput.seconds)} s).`,
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
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
