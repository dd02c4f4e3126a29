/**
 * Chunks of a run are encoded as its steps come to need them, so that the first step does not wait for all. They are
 * encoded in parts whose limits depend on settings alone: what a vector's last bits are depends on the chunks that were
 * computed with it, and a run that was stopped has the same parts as one that was not.
 */
import type { Embeddings } from '../data/embeddings.ts';
import type { DataRow } from '../data/rows.ts';
import { encodeChunks, type SampleMaker } from '../data/samples.ts';

/** Samples of the first part, and the most of any; each part is twice as large as the one before. */
const FIRST_SAMPLES = 64;
const MOST_SAMPLES = 512;

interface EncodingParts {
  readonly embeddings: Pick<Embeddings, 'add' | 'closeEncoder'>;
  readonly samples: Pick<SampleMaker, 'chunksOf'>;
  /** Rows that are needed before the first step, such as those of the validation. */
  readonly first: readonly DataRow[];
  /** The rows of a step, counted from 0. */
  readonly rowsOf: (step: number) => readonly DataRow[];
  readonly steps: number;
  /** All rows that steps may have: the encoder is closed when they are encoded. */
  readonly total: number;
}

export class EncodingAhead {
  readonly #parts: EncodingParts;
  readonly #onProgress: (text: string) => void;
  readonly #seen = new Set<string>();
  /** Steps whose chunks are encoded. */
  #ready = 0;
  #samples = FIRST_SAMPLES;
  #begun = false;

  /** @param onProgress told what is encoded, in words */
  constructor(parts: EncodingParts, onProgress: (text: string) => void) {
    this.#parts = parts;
    this.#onProgress = onProgress;
  }

  /**
   * Encodes what the steps up to this one need, unless it is kept already.
   * @throws as {@link encodeChunks}.
   */
  async until(step: number, signal: AbortSignal): Promise<void> {
    const { first, rowsOf, steps, total, embeddings } = this.#parts;
    if (!this.#begun) await this.#encode(first, signal);
    this.#begun = true;
    while (this.#ready <= step && this.#ready < steps && this.#seen.size < total) {
      const part: DataRow[] = [];
      do {
        for (const row of rowsOf(this.#ready++)) {
          if (!this.#seen.has(row.name)) part.push(row);
          this.#seen.add(row.name);
        }
      } while (part.length < this.#samples && this.#ready < steps && this.#seen.size < total);
      await this.#encode(part, signal);
      this.#samples = Math.min(2 * this.#samples, MOST_SAMPLES);
    }
    if (this.#ready >= steps || this.#seen.size === total) embeddings.closeEncoder();
  }

  #encode(rows: readonly DataRow[], signal: AbortSignal): Promise<void> {
    const { samples, embeddings } = this.#parts;
    return encodeChunks(rows, samples, embeddings, this.#onProgress, signal);
  }
}
