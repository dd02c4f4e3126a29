/** The report of `bench index`. */
import { median } from '../measure/statistics.ts';
import { figure, table } from '../report/markdown.ts';
import type { Bench, Report } from '../report/report.ts';
import type { EncoderIdentity, EncoderResult, IndexingRun, IndexResult, MeasuredCell } from './result.ts';

/** Chunks of a large repository: about 500,000 lines that are not blank. */
const LARGE = 100_000;

export const INDEX: Bench<IndexResult> = {
  name: 'index',
  title: 'Indexing',
  definitions: {
    weights: 'how the encoder stores its matrices: fp32, or int8 with a scale for each block of 128 values',
    batching:
      'by length: chunks of similar length share a batch, as the indexer does it; as they come: batches of the same ' +
      'size in the order of the repository; one at a time: no batches',
    workers: 'processes that divide the chunks, each with an encoder of its own, × threads of each',
    'chunks/s': 'chunks encoded / s until the last vector, without the time to load the encoder; median of the rounds',
    'lowest–highest': 'chunks/s of the slowest and of the fastest round',
    'ms per chunk': '1000 / (chunks/s)',
    'CPU ms per chunk': 'CPU time of all threads / chunks, median of the rounds: other programs change it little',
    'h for 100,000 chunks': '100,000 / (chunks/s) / 3600',
    'speed relative to the first row': 'seconds of the first row / seconds of this row in the same round, median',
    encoded: 'chunks that went through encoder and projector; the index held the others already',
  },
  report: ({ result }) => reportIndex(result),
  headline: ({ encoders }) =>
    encoders
      .flatMap(({ chunks, encoder, cells: [first] }) =>
        first === undefined ? [] : [headlineOf(chunks, encoder, first)],
      )
      .join('; '),
};

const rate = (chunks: number, { seconds }: Pick<MeasuredCell, 'seconds'>) => chunks / median(seconds);
const hours = (chunksPerSecond: number) => figure(LARGE / chunksPerSecond / 3600);

function headlineOf(chunks: number, encoder: EncoderIdentity, cell: MeasuredCell): string {
  const chunksPerSecond = rate(chunks, cell);
  return (
    `${figure(chunksPerSecond)} chunks/s with ${nameOf(encoder)}, ${cell.weights}: ` +
    `${hours(chunksPerSecond)} h for 100,000 chunks`
  );
}

/** The encoder in words. */
function nameOf({ name = 'an encoder without a name', layers, randomWeights }: EncoderIdentity): string {
  const depth = layers === undefined ? '' : ` (${layers} layers${randomWeights ? ', random weights' : ''})`;
  return `${name}${depth}`;
}

function reportIndex({ encoders, runs }: IndexResult): Report {
  const sections = [...encoders.map(reportEncoder), reportRuns(runs)];
  return { markdown: sections.join('\n\n'), charts: [] };
}

function reportEncoder({ model, encoder, chunks, tokens, repositoryChunks, cells }: EncoderResult): string {
  const rounds = cells[0]?.seconds.length ?? 0;
  const about =
    `The encoder of ${model} is ${nameOf(encoder)}. Every row encodes the same ${chunks} of the repository's ` +
    `${repositoryChunks} chunks, of ${figure(tokens / chunks)} tokens on average, ${rounds} times, in turns with the ` +
    'other rows.';
  const head = [
    'weights',
    'batching',
    'workers',
    'chunks/s',
    'lowest–highest',
    'ms per chunk',
    'CPU ms per chunk',
    'h for 100,000 chunks',
    'speed relative to the first row',
  ];
  const rows = cells.map((cell) => {
    const chunksPerSecond = rate(chunks, cell);
    const ratios = cell.seconds.map((seconds, round) => cells[0]!.seconds[round]! / seconds);
    return [
      cell.weights,
      cell.batching,
      `${cell.workers} × ${cell.threads}`,
      figure(chunksPerSecond),
      `${figure(chunks / Math.max(...cell.seconds))}–${figure(chunks / Math.min(...cell.seconds))}`,
      figure(1000 / chunksPerSecond),
      figure((1000 * median(cell.cpuSeconds)) / chunks),
      hours(chunksPerSecond),
      `${figure(median(ratios))} ×`,
    ];
  });
  return `${about}\n\n${table(head, rows, ['left', 'left', 'left'])}`;
}

function reportRuns(runs: readonly IndexingRun[]): string {
  const rows = runs.map(({ model, encoder, run, chunks, embedded, seconds }) => [
    model,
    nameOf(encoder),
    run,
    String(chunks),
    String(embedded),
    figure(seconds),
    embedded === 0 ? '—' : figure(embedded / seconds),
  ]);
  const head = ['model', 'encoder', 'run', 'chunks', 'encoded', 's', 'chunks/s'];
  return (
    'Whole runs of `llavacode index`, with the bundle that the other benches use:\n\n' +
    table(head, rows, ['left', 'left', 'left'])
  );
}
