/** The chunks of a data set that a projector is pretrained on, and the samples that ask for their text. */
import { ServingError } from '../../services/lib/process/errors.ts';
import { chunkKey, type Embeddings } from '../data/embeddings.ts';
import type { Chunk, DataRow } from '../data/rows.ts';
import type { SampleMaker } from '../data/samples.ts';
import type { EmbeddedSample } from '../step/trainer.ts';

/** Where a chunk stands. Rows lie in memory packed, so chunks are read when they are needed. */
interface Place {
  readonly row: DataRow;
  readonly at: number;
}

export class DistinctChunks {
  readonly #places: readonly Place[];

  /**
   * The chunks that become soft tokens in the rows, each once, in the order of the rows. Those without text are left
   * out: there is nothing to recover.
   * @param limit the most chunks
   * @throws ServingError sample_invalid where none is left.
   */
  constructor(rows: readonly DataRow[], samples: SampleMaker, limit = Number.POSITIVE_INFINITY) {
    const seen = new Set<string>();
    const places: Place[] = [];
    for (const row of rows) {
      if (places.length >= limit) break;
      for (const [at, chunk] of samples.chunksOf(row).entries()) {
        const key = chunkKey(chunk);
        if (places.length >= limit || seen.has(key) || chunk.text.trim() === '') continue;
        seen.add(key);
        places.push({ row, at });
      }
    }
    if (places.length === 0) {
      const what = `${rows[0]?.name ?? 'the data set'} and all further samples have chunks without text alone`;
      throw new ServingError('sample_invalid', `${what}: --pretrain has nothing to recover`);
    }
    this.#places = places;
  }

  /** The rows that they are of, each once. */
  get rows(): readonly DataRow[] {
    return [...new Set(this.#places.map(({ row }) => row))];
  }

  get count(): number {
    return this.#places.length;
  }

  /** A chunk, and the sample that it is of, for messages. */
  at(index: number): { readonly chunk: Chunk; readonly name: string } {
    const { row, at } = this.#places[index]!;
    return { chunk: row.chunks[at]!, name: `${row.name}, chunk ${at + 1}` };
  }
}

/**
 * The sample that asks for the text of a chunk: the prompt as serving builds it, with the chunk's soft tokens and the
 * cue before the cursor; the text is the target.
 * @param samples makes prompts and targets of the lengths of a pretraining
 * @throws ServingError context_length_exceeded
 */
export function recovering(
  { chunk, name }: ReturnType<DistinctChunks['at']>,
  cue: string,
  samples: SampleMaker,
  embeddings: Embeddings,
): Promise<EmbeddedSample> {
  return samples.embedded({ name, left: cue, right: '', target: chunk.text, chunks: [chunk] }, embeddings);
}
