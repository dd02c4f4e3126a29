/**
 * Greedy continuations by the model that is trained on, for REINFORCE. All prompts of a batch decode together, one slot
 * of the KV pool each.
 */
import { CpuEngineKv } from '../../services/lib/engine/engine-kv.ts';
import { DecoderSession, NO_TOKEN } from '../../services/lib/engine/session.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { buildDecoder } from '../../services/lib/model/graph/decoder.ts';
import { withGraph } from './graph-session.ts';
import type { ModelPlace } from './pass.ts';
import type { Sample } from './rows.ts';

interface RolloutSettings {
  /** Sequences that decode together. */
  readonly slots: number;
  /** The most tokens of a rollout. */
  readonly tokens: number;
  /** Ids that end one. They belong to it: the model is rewarded for ending, too. */
  readonly stopIds: ReadonlySet<number>;
}

/** The index of the largest value between two positions; the first one of equals. */
function argmax(values: Float32Array, start: number, end: number): number {
  let best = start;
  for (let i = start + 1; i < end; i++) if (values[i]! > values[best]!) best = i;
  return best - start;
}

export class Rollouts {
  readonly #session: DecoderSession;
  readonly #settings: RolloutSettings;
  readonly #vocab: number;

  private constructor(session: DecoderSession, settings: RolloutSettings, vocab: number) {
    this.#session = session;
    this.#settings = settings;
    this.#vocab = vocab;
  }

  /** @throws ServingError checkpoint_invalid, out_of_memory, runtime_failed; the signal's reason. */
  static async load(place: ModelPlace, settings: RolloutSettings, signal?: AbortSignal): Promise<Rollouts> {
    const { spec, weights, layers, maxPositions, folder, threads, packWeights } = place;
    const graph = buildDecoder(spec, weights, { layers, vocabulary: 'fp32', maxPositions });
    const pool = new KvPool(new CpuEngineKv(spec, settings.slots, maxPositions));
    const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
    const load = (path: string) => DecoderSession.load(path, shape, pool, { threads, packWeights });
    return new Rollouts((await withGraph(graph, folder, load, signal)).loaded, settings, spec.vocab);
  }

  /**
   * @param soft [soft, hidden] of each sample
   * @returns the ids that follow each prompt
   * @throws ServingError context_length_exceeded; the signal's reason
   */
  async greedy(
    samples: readonly Sample[],
    soft: readonly Float32Array[],
    signal?: AbortSignal,
  ): Promise<readonly number[][]> {
    const found: number[][] = [];
    const { slots } = this.#settings;
    for (let start = 0; start < samples.length; start += slots) {
      const end = start + slots;
      found.push(...(await this.#together(samples.slice(start, end), soft.slice(start, end), signal)));
    }
    return found;
  }

  async #together(
    samples: readonly Sample[],
    soft: readonly Float32Array[],
    signal?: AbortSignal,
  ): Promise<number[][]> {
    const { tokens, stopIds } = this.#settings;
    const lengths = Int32Array.from(samples, ({ promptIds }) => promptIds.length);
    const last = new Int32Array(samples.length);
    for (const [slot, { promptIds, softPositions }] of samples.entries()) {
      const logits = await this.#session.chunk(
        {
          slot,
          past: 0,
          ids: Int32Array.from(promptIds),
          soft: { positions: Int32Array.from(softPositions), vectors: soft[slot]! },
          logitRows: [promptIds.length - 1],
        },
        signal,
      );
      last[slot] = argmax(logits, 0, this.#vocab);
    }
    const written: number[][] = samples.map(() => []);
    for (;;) {
      for (const [slot, ids] of written.entries()) {
        if (last[slot] === NO_TOKEN) continue;
        ids.push(last[slot]!);
        if (ids.length === tokens || stopIds.has(last[slot]!)) last[slot] = NO_TOKEN;
      }
      if (last.every((id) => id === NO_TOKEN)) return written;
      signal?.throwIfAborted();
      const logits = await this.#session.step(last, lengths);
      for (const slot of written.keys()) {
        if (last[slot] === NO_TOKEN) continue;
        lengths[slot]!++;
        last[slot] = argmax(logits, slot * this.#vocab, (slot + 1) * this.#vocab);
      }
    }
  }

  async dispose(): Promise<void> {
    await this.#session.dispose();
  }
}
