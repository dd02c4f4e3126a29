/** The reports of `bench retrieval`, `bench recall` and `bench dense`. */
import { axes } from '../report/chart.ts';
import { figure, percent, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import { type DenseSearch, middleAndLeast } from './dense-search.ts';
import type { RetrievalResult } from './measure.ts';
import type { Quality } from './quality.ts';
import type { RecallResult } from './recall.ts';

export const RETRIEVAL: Bench<RetrievalResult> = {
  name: 'retrieval',
  title: 'Retrieval',
  definitions: {
    first: 'ms of the first query, which loads the index',
    'p50, p90, p99': "ms of one of the later queries, in the gateway's process",
  },
  report: ({ result }) => reportRetrieval(result),
  headline: ({ runs, topK }) =>
    `p50 of finding the top ${topK}: ` +
    runs
      .filter(({ chunks }) => chunks === 10_000)
      .map(({ store, chunks, warm }) => `${figure(warm.p50)} ms of ${chunks} chunks (${store})`)
      .join(', '),
};

function reportRetrieval({ runs, topK, notRun }: RetrievalResult): Report {
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
      `Time to find the top ${topK} in ms per query, in the gateway’s process. The first query loads the index.`,
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

export const RECALL: Bench<RecallResult> = {
  name: 'recall',
  title: 'Retrievers compared',
  definitions: {
    'recall@10': 'share of questions whose defining chunk is among the first ten found',
    'p50, p99': 'ms of one search for ten chunks on one core',
    'bytes per chunk': "bytes of the index in memory, including identifiers' names / chunks",
    build: 's to make the index',
  },
  report: ({ result }) => reportRecall(result),
  headline: ({ quality }) =>
    `recall@10: ${retrieversOf(quality)
      .map((name) => `${name} ${percent(meanRecall(quality, name), 1)}`)
      .join(', ')}`,
};

type Retriever = keyof Quality['recallAt10'];

const retrieversOf = (quality: readonly Quality[]) => Object.keys(quality[0]?.recallAt10 ?? {}) as Retriever[];
const questionsOf = (quality: readonly Quality[]) => quality.reduce((sum, row) => sum + row.questions, 0);
/** The recall over all questions. */
const meanRecall = (quality: readonly Quality[], name: Retriever) =>
  quality.reduce((sum, row) => sum + row.recallAt10[name] * row.questions, 0) / Math.max(questionsOf(quality), 1);

function reportRecall({ quality, scale, throughput, threads }: RecallResult): Report {
  const names = retrieversOf(quality);
  const recall = table(
    ['repository', 'chunks', 'questions', ...names],
    [
      ...quality.map(({ repository, chunks, questions, recallAt10 }) => [
        repository,
        String(chunks),
        String(questions),
        ...names.map((name) => percent(recallAt10[name], 1)),
      ]),
      [
        '**all**',
        '',
        String(questionsOf(quality)),
        ...names.map((name) => `**${percent(meanRecall(quality, name), 1)}**`),
      ],
    ],
  );
  const cost = table(
    ['retriever', 'chunks', 'p50, ms', 'p99, ms', 'bytes per chunk', 'build, s'],
    scale.map(({ retriever, chunks, p50Ms, p99Ms, bytesPerChunk, buildSeconds }) => [
      retriever,
      chunks.toLocaleString('en'),
      figure(p50Ms),
      figure(p99Ms),
      bytesPerChunk.toFixed(0),
      figure(buildSeconds),
    ]),
  );
  const sections = [
    'Recall@10 is the share of identifiers, used by three held-out lines of a function, whose defining chunk is found among ' +
      'the chunks of all other files. The query is the text around the hole (10 non-blank lines before it, 5 after it); the ' +
      'retriever does not see the held-out lines.',
    recall,
    "The next table shows one top-10 search on one core, and the memory of the index, including identifiers' names. Chunks " +
      'are real up to the number that the dependencies of this package have; beyond it, they are repeated with other names.',
    cost,
    `Encoder and projector take ${figure(throughput.chunksPerSecond)} chunks/s on ${threads} threads ` +
      `(${throughput.chunks} chunks in ${figure(throughput.seconds)} s).`,
  ];
  return { markdown: sections.join('\n\n'), charts: [] };
}

export const DENSE: Bench<{ readonly searches: readonly DenseSearch[] }> = {
  name: 'dense',
  title: 'Dense search of large indexes',
  definitions: {
    exact: 'all embeddings in 8 bits, then in full those that may be among the best',
    coded: 'one bit per dimension of all embeddings, then in full the half percent that seem best',
    CPU: 'CPU time of the process during one search, in ms',
    'recall@10': 'share of the ten best of the exact search that are found',
  },
  report({ result: { searches } }) {
    const both = (figures: readonly number[]) => middleAndLeast(figures).map(figure).join(', ');
    const rows = searches.map(({ search, chunks, dim, ms, cpuMs, recall, bytesPerChunk, buildSeconds }) => [
      `${search}, ${chunks.toLocaleString('en')} x ${dim}`,
      both(cpuMs),
      both(ms),
      percent(recall, 1),
      bytesPerChunk.toFixed(0),
      figure(buildSeconds),
    ]);
    const head = [
      'search',
      'CPU: median, least',
      'ms: median, least',
      'recall@10',
      'bytes per chunk',
      'build, s of CPU',
    ];
    return { markdown: table(head, rows), charts: [] };
  },
  headline: ({ searches }) =>
    searches
      .filter(({ search }) => search === 'coded')
      .map(({ chunks, cpuMs, recall }) => {
        const [cpu] = middleAndLeast(cpuMs);
        return `${chunks.toLocaleString('en')} chunks in ${figure(cpu)} ms of CPU time, recall@10 ${percent(recall, 1)}`;
      })
      .join('; '),
};
