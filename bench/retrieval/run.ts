/**
 * The retrieval benchmark: recall of the chunk that defines a used identifier, latency and memory by index size, encoder
 * throughput. Writes `retrieval.json` and `retrieval.md`. After `npm run build`: `node dist/bench/retrieval/run.js`.
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { openBundle } from '../../services/lib/model/bundle.ts';
import { exportBundle } from '../../services/lib/model/export.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/config.ts';
import { everything, repositories } from './corpus.ts';
import { measureQuality, type Quality, type Throughput } from './quality.ts';
import { measureDense, measureLexical, type ScaleRow } from './scale.ts';

export interface RetrievalBench {
  /** Hugging Face folder of the model whose encoder is used; the one that ships by default. */
  readonly llm?: string;
  /** Folder for the results. */
  readonly to?: string;
  /** Index sizes, in chunks. */
  readonly sizes?: readonly number[];
  readonly threads?: number;
  readonly say?: (text: string) => void;
}

export interface RetrievalFigures {
  readonly quality: readonly Quality[];
  readonly throughput: Throughput;
  readonly scale: readonly ScaleRow[];
}

export async function run({
  llm = join(PACKAGE_ROOT, 'models', 'tiny-coder'),
  to = join(PACKAGE_ROOT, 'bench', 'results'),
  sizes = [10_000, 100_000, 1_000_000],
  threads = availableParallelism(),
  say = (text) => process.stderr.write(`${text}\n`),
}: RetrievalBench = {}): Promise<RetrievalFigures> {
  const work = await mkdtemp(join(tmpdir(), 'llavacode-bench-'));
  try {
    const manifest = await exportBundle({ llm, to: join(work, 'bundle'), precision: 'fp32' });
    const bundle = await openBundle(join(work, 'bundle'));
    const measured = await measureQuality(await repositories(), bundle, threads, say);
    say(`latency at ${sizes.join(', ')} chunks`);
    const dim = manifest.context?.encoder.dim ?? 256;
    const scale = [...(await measureLexical(await everything(), sizes)), ...(await measureDense(dim, sizes))];
    const figures = { ...measured, scale };
    await mkdir(to, { recursive: true });
    await writeFile(join(to, 'retrieval.json'), `${JSON.stringify(figures, null, 2)}\n`);
    await writeFile(join(to, 'retrieval.md'), markdown(figures, threads));
    return figures;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

function markdown({ quality, throughput, scale }: RetrievalFigures, threads: number): string {
  const names = Object.keys(quality[0]?.recallAt10 ?? {}) as (keyof Quality['recallAt10'])[];
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  const mean = (name: (typeof names)[number]) => {
    const questions = quality.reduce((sum, row) => sum + row.questions, 0);
    return quality.reduce((sum, row) => sum + row.recallAt10[name] * row.questions, 0) / Math.max(questions, 1);
  };
  const row = (cells: readonly (string | number)[]) => `| ${cells.join(' | ')} |`;
  const table = (head: readonly string[], rows: readonly string[]) =>
    [row(head), row(head.map(() => '---')), ...rows].join('\n');
  const recall = table(
    ['repository', 'chunks', 'questions', ...names],
    [
      ...quality.map((q) =>
        row([q.repository, q.chunks, q.questions, ...names.map((name) => percent(q.recallAt10[name]))]),
      ),
      row(['**all**', '', '', ...names.map((name) => `**${percent(mean(name))}**`)]),
    ],
  );
  const cost = table(
    ['retriever', 'chunks', 'p50', 'p99', 'bytes per chunk', 'build'],
    scale.map(({ retriever, chunks, p50Ms, p99Ms, bytesPerChunk, buildSeconds }) =>
      row([
        retriever,
        chunks.toLocaleString('en'),
        `${p50Ms.toFixed(2)} ms`,
        `${p99Ms.toFixed(2)} ms`,
        bytesPerChunk.toFixed(0),
        `${buildSeconds.toFixed(1)} s`,
      ]),
    ),
  );
  return `# Retrieval

Recall@10 of the chunk that defines an identifier which three held-out lines of a function use, among the chunks of all
other files. The query is the text around the hole (10 non-blank lines before, 5 after); the lines themselves are not seen.

${recall}

Latency of one top-10 search on one core, and memory of the index (identifiers' names apart). Up to the number of chunks
that the dependencies of this package have, chunks are real; beyond, they are repeated with other names.

${cost}

Encoder and projector of the shipped model: ${throughput.chunksPerSecond.toFixed(0)} chunks/s on ${threads} threads (${throughput.chunks} chunks in ${throughput.seconds.toFixed(1)} s).
`;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await run();
