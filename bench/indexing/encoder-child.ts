/**
 * One worker that encodes chunks, in a process of its own, as an indexer has. It loads the encoder of a bundle, encodes
 * one chunk to warm up and says that it is ready; then it encodes its chunks when it is told to start, and answers with
 * the time. Its parent is ./measure.ts.
 */
import { openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { BATCH_TOKENS, contextOf, loadContextEncoder } from '../../services/lib/rag/encode/encode.ts';
import { type EncoderInput, inputBuilder } from '../../services/lib/rag/encode/encoder-input.ts';
import type { Batching } from './result.ts';

export interface EncoderTask {
  /** Folder of the bundle. */
  readonly bundle: string;
  readonly threads: number;
  readonly batching: Batching;
  readonly chunks: readonly EncoderInput[];
}

export type EncoderAnswer =
  | { readonly ready: true }
  | {
      /** Time from the start to the last vector, and CPU time of all threads of this process in it. */
      readonly seconds: number;
      readonly cpuSeconds: number;
      /** Tokens of the chunks, without padding. */
      readonly tokens: number;
    }
  | { readonly error: string };

async function load({ bundle: dir, threads, batching, chunks }: EncoderTask): Promise<() => Promise<EncoderAnswer>> {
  const bundle = await openBundle(dir);
  const encoder = await loadContextEncoder(bundle, { threads });
  const lengths = await lengthsOf(bundle, chunks);
  const groups = grouped(chunks, lengths, batching);
  await encoder.encode(chunks.slice(0, 1));
  return async () => {
    const startMs = performance.now();
    const startCpu = process.cpuUsage();
    for (const group of groups) await encoder.encode(group);
    const { user, system } = process.cpuUsage(startCpu);
    return {
      seconds: (performance.now() - startMs) / 1000,
      cpuSeconds: (user + system) / 1e6,
      tokens: lengths.reduce((sum, length) => sum + length, 0),
    };
  };
}

async function lengthsOf(bundle: Parameters<typeof contextOf>[0], chunks: readonly EncoderInput[]): Promise<number[]> {
  const { paths, settings } = contextOf(bundle);
  const inputs = await inputBuilder(bundle.dir, paths.tokenizerDir, settings);
  try {
    return chunks.map((chunk) => inputs.build(chunk).ids.length);
  } finally {
    inputs.dispose();
  }
}

/** The chunks of each call of the encoder, which sorts within a call only, and cuts a call into batches that fit. */
function grouped(chunks: readonly EncoderInput[], lengths: readonly number[], batching: Batching): EncoderInput[][] {
  if (batching === 'by length') return [[...chunks]];
  const groups: EncoderInput[][] = [];
  let longest = 0;
  for (const [i, chunk] of chunks.entries()) {
    const group = groups.at(-1);
    longest = Math.max(longest, lengths[i]!);
    if (group && batching === 'as they come' && (group.length + 1) * longest <= BATCH_TOKENS) {
      group.push(chunk);
      continue;
    }
    groups.push([chunk]);
    longest = lengths[i]!;
  }
  return groups;
}

const answer = (message: EncoderAnswer) => process.send?.(message);
const failed = (error: unknown) => answer({ error: String(error) });

let encodeAll: (() => Promise<EncoderAnswer>) | undefined;
process.on('message', (message: EncoderTask | 'start') => {
  if (message !== 'start') {
    load(message).then((loaded) => {
      encodeAll = loaded;
      answer({ ready: true });
    }, failed);
  } else encodeAll?.().then(answer, failed);
});
process.on('disconnect', () => process.exit(0));
