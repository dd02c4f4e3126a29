/**
 * Memory tokens: for each chunk a free vector in the place of each of its soft tokens, fitted together until the frozen
 * model recovers the chunk's text from them (Kuratov et al., "Cramming 1568 tokens into a single vector and back
 * again", 2025). They are kept by the content of the chunk. Each chunk's are fitted by themselves, so a run that was
 * killed goes on with the same bits.
 */
import { join } from 'node:path';
import { z } from 'zod';
import { ServingError } from '../../services/lib/process/errors.ts';
import { makeFolder } from '../../services/lib/process/os-errors.ts';
import { contentKey, KeptLines } from '../data/lines.ts';
import { gaussians } from '../step/gaussians.ts';
import { AdamW } from '../step/optimizer.ts';
import type { ModelPass } from '../step/pass.ts';
import type { Sample } from '../step/rows.ts';
import type { MemorySettings } from './settings.ts';

export interface MemoryToken {
  /** [soft, hidden] */
  readonly vector: Float32Array;
  /** Cross-entropy of the text with these vectors: mean over its tokens of -log p. */
  readonly ce: number;
  /** Steps of the optimiser that were made. */
  readonly steps: number;
}

/** The random numbers that all fits begin with. */
interface Beginning {
  readonly seed: number;
  /** Their standard deviation: that of the model's own embeddings of tokens. */
  readonly scale: number;
}

/** Cross-entropy at which a fit ends: the mean probability of a token is 0.95, and greedy decoding recovers it. */
const RECOVERED = 0.05;

/**
 * Fits the vectors of one chunk. All fits begin with the same ones, so that chunks that are alike may end near each
 * other.
 * @param sample has the chunk's soft tokens, and its text as the target
 * @param model with the weight 1 of cross-entropy, and 0 of all other losses
 * @returns the best vectors that were seen
 * @throws ServingError sample_invalid, training_diverged, runtime_failed; the signal's reason.
 */
export async function fitMemoryToken(
  sample: Sample,
  model: Pick<ModelPass, 'run'>,
  hidden: number,
  { steps, learningRate }: MemorySettings,
  { seed, scale }: Beginning,
  signal?: AbortSignal,
): Promise<MemoryToken> {
  const vector = gaussians(seed, 0, sample.softPositions.length * hidden, scale);
  const adam = new AdamW(new Map([['memory', vector]]));
  let best: MemoryToken | undefined;
  for (let made = 0; ; made++) {
    const { ce, gradient } = await model.run(sample, vector, 1, {}, signal);
    if (best === undefined || ce < best.ce) best = { vector: vector.slice(), ce, steps: made };
    if (made === steps || best.ce <= RECOVERED) return { ...best, steps: made };
    adam.step(new Map([['memory', gradient]]), learningRate);
  }
}

const lineSchema = z.object({ vector: z.base64(), ce: z.number(), steps: z.number().int().nonnegative() });

export class MemoryTokens {
  readonly #kept: KeptLines<z.infer<typeof lineSchema>>;
  readonly #fit: (sample: Sample, signal?: AbortSignal) => Promise<MemoryToken>;
  readonly #hidden: number;

  private constructor(
    kept: KeptLines<z.infer<typeof lineSchema>>,
    fit: (sample: Sample, signal?: AbortSignal) => Promise<MemoryToken>,
    hidden: number,
  ) {
    this.#kept = kept;
    this.#fit = fit;
    this.#hidden = hidden;
  }

  /**
   * @param dir folder in which memory tokens of all models are kept, in one file for each model and its settings
   * @param model as {@link fitMemoryToken} needs it
   * @throws ServingError path_unusable
   */
  static async open(
    dir: string,
    model: ModelPass,
    hidden: number,
    settings: MemorySettings,
    beginning: Beginning,
  ): Promise<MemoryTokens> {
    await makeFolder(dir);
    const ofModel = contentKey(model.digest, settings, beginning).slice(0, 16);
    const kept = await KeptLines.open(join(dir, `memory-${ofModel}.jsonl`), lineSchema);
    const fit = (sample: Sample, signal?: AbortSignal) =>
      fitMemoryToken(sample, model, hidden, settings, beginning, signal);
    return new MemoryTokens(kept, fit, hidden);
  }

  /** The memory tokens of a sample, which are fitted where they are not kept yet. @throws as {@link fitMemoryToken}. */
  async of(sample: Sample, signal?: AbortSignal): Promise<MemoryToken> {
    const key = contentKey(sample.promptIds, sample.targetIds);
    const known = this.#kept.get(key);
    const vector = known && valuesOf(known.vector, sample.softPositions.length * this.#hidden);
    if (known && vector) return { ...known, vector };
    const fitted = await this.#fit(sample, signal);
    if (!fitted.vector.every(Number.isFinite)) {
      throw new ServingError('training_diverged', `${sample.name}: its memory token has values that are not finite`);
    }
    const text = Buffer.from(fitted.vector.buffer).toString('base64');
    await this.#kept.add(new Map([[key, { ...fitted, vector: text }]]));
    return fitted;
  }
}

/** So many values of vectors; undefined where they are not those of fitted ones. */
function valuesOf(text: string, count: number): Float32Array | undefined {
  const bytes = Uint8Array.from(Buffer.from(text, 'base64'));
  if (bytes.length !== 4 * count) return undefined;
  const values = new Float32Array(bytes.buffer);
  return values.every(Number.isFinite) ? values : undefined;
}
