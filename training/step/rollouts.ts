/**
 * Continuations by the model that is trained on, for REINFORCE and for validations: greedy or drawn. All prompts of a
 * batch decode together, one slot of the KV pool each.
 */
import { CPU, type Device } from '../../services/lib/engine/device.ts';
import { DeviceKv } from '../../services/lib/engine/device-kv.ts';
import { CpuEngineKv } from '../../services/lib/engine/engine-kv.ts';
import { OutputHistory, sample } from '../../services/lib/engine/sampler.ts';
import { DecoderSession, NO_TOKEN } from '../../services/lib/engine/session.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { buildDecoder } from '../../services/lib/model/graph/decoder.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { GREEDY, type Sampling } from '../../services/lib/request/next-token.ts';
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

/** How drawn rollouts are drawn: the authors' figures for self-critical training. */
const DRAWN = { temperature: 0.9, topP: 0.9 };

export class Rollouts {
  /** SHA-256 of the graph and its weights, in hex. */
  readonly digest: string;
  readonly #session: DecoderSession;
  readonly #settings: RolloutSettings;
  readonly #vocab: number;

  private constructor(session: DecoderSession, digest: string, settings: RolloutSettings, vocab: number) {
    this.digest = digest;
    this.#session = session;
    this.#settings = settings;
    this.#vocab = vocab;
  }

  /** @throws ServingError checkpoint_invalid, out_of_memory, runtime_failed; the signal's reason. */
  static async load(place: ModelPlace, settings: RolloutSettings, signal?: AbortSignal): Promise<Rollouts> {
    const { spec, weights, layers, maxPositions, threads, packWeights } = place;
    const graph = buildDecoder(spec, weights, { layers, vocabulary: 'fp32', maxPositions });
    const device = deviceOf(place);
    const memory =
      device.kind === 'cpu'
        ? new CpuEngineKv(spec, settings.slots, maxPositions)
        : await DeviceKv.create(device, spec, settings.slots, maxPositions, 'both');
    const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
    const load = (path: string) =>
      DecoderSession.load(path, shape, new KvPool(memory), { device, threads, packWeights });
    const { loaded, digest } = await withGraph(graph, place, load, signal).catch(async (error) => {
      await memory.dispose();
      throw error;
    });
    return new Rollouts(loaded, digest, settings, spec.vocab);
  }

  /**
   * Continuations of the likeliest tokens.
   * @param soft [soft, hidden] of each sample
   * @returns the ids that follow each prompt
   * @throws ServingError context_length_exceeded; training_diverged where the model gives a logit that is not a number;
   *   the signal's reason
   */
  greedy(samples: readonly Sample[], soft: readonly Float32Array[], signal?: AbortSignal): Promise<number[][]> {
    return this.#all(samples, soft, () => GREEDY, signal);
  }

  /**
   * Continuations of random tokens, as likely as the model finds them at {@link DRAWN}.
   * @param seeds of each sample, whole numbers below 2^53: the same one draws the same tokens
   * @throws as {@link greedy}.
   */
  drawn(
    samples: readonly Sample[],
    soft: readonly Float32Array[],
    seeds: readonly number[],
    signal?: AbortSignal,
  ): Promise<number[][]> {
    return this.#all(samples, soft, (i) => ({ ...GREEDY, ...DRAWN, seed: seeds[i]! }), signal);
  }

  async #all(
    samples: readonly Sample[],
    soft: readonly Float32Array[],
    sampling: (i: number) => Sampling,
    signal?: AbortSignal,
  ): Promise<number[][]> {
    const found: number[][] = [];
    const { slots } = this.#settings;
    for (let start = 0; start < samples.length; start += slots) {
      const part = samples.slice(start, start + slots).map((sample, i) => ({
        sample,
        soft: soft[start + i]!,
        sampling: sampling(start + i),
      }));
      found.push(...(await this.#together(part, signal)));
    }
    return found;
  }

  async #together(sequences: readonly Sequence[], signal?: AbortSignal): Promise<number[][]> {
    const { tokens, stopIds } = this.#settings;
    const lengths = Int32Array.from(sequences, ({ sample }) => sample.promptIds.length);
    const last = new Int32Array(sequences.length);
    for (const [slot, { sample, soft }] of sequences.entries()) {
      const { promptIds, softPositions } = sample;
      const logits = await this.#session.chunk(
        {
          slot,
          past: 0,
          ids: Int32Array.from(promptIds),
          soft: { positions: Int32Array.from(softPositions), vectors: soft },
          logitRows: [promptIds.length - 1],
        },
        signal,
      );
      last[slot] = chosen(sequences[slot]!, logits.subarray(0, this.#vocab), 0);
    }
    const written: number[][] = sequences.map(() => []);
    for (;;) {
      for (const [slot, ids] of written.entries()) {
        if (last[slot] === NO_TOKEN) continue;
        ids.push(last[slot]!);
        if (ids.length === tokens || stopIds.has(last[slot]!)) last[slot] = NO_TOKEN;
      }
      if (last.every((id) => id === NO_TOKEN)) return written;
      signal?.throwIfAborted();
      const logits = await this.#session.step(last, lengths);
      for (const [slot, ids] of written.entries()) {
        if (last[slot] === NO_TOKEN) continue;
        lengths[slot]!++;
        const row = logits.subarray(slot * this.#vocab, (slot + 1) * this.#vocab);
        last[slot] = chosen(sequences[slot]!, row, ids.length);
      }
    }
  }

  async dispose(): Promise<void> {
    await this.#session.dispose();
    await this.#session.pool.store.dispose();
  }
}

/** Where rollouts decode: on WebGPU, else on the CPU. Attention of CUDA takes 16-bit floats only. */
const deviceOf = ({ device }: ModelPlace): Device => (device?.kind === 'webgpu' ? device : CPU);

interface Sequence {
  readonly sample: Sample;
  readonly soft: Float32Array;
  readonly sampling: Sampling;
}

const NO_HISTORY = new OutputHistory(); // without penalties nothing is read of it

/** The token at a position of the rollout, from 0. */
function chosen({ sample: { name }, sampling }: Sequence, logits: Float32Array, position: number): number {
  try {
    return sample(logits, sampling, position, NO_HISTORY).id;
  } catch (error) {
    const cause = ServingError.from(error);
    if (cause.code !== 'runtime_failed') throw cause;
    throw new ServingError('training_diverged', `${name}: in its rollout ${cause.message}`, { cause });
  }
}
