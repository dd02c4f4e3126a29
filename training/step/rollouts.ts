/**
 * Continuations by the model that is trained on, for REINFORCE and for validations: greedy or drawn. They decode
 * together, one slot of the KV pool each. A slot whose sequence has ended takes the next one at once: another
 * continuation of its prompt, whose keys and values are there, or another prompt.
 *
 * All steps of a call compute equally many slots, those without a sequence too: what the last bits of a row are depends
 * on the number of rows, so a sequence would else depend on which others are still running. By default these are all
 * slots, so that a sequence does not depend on how many others there are either.
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

/**
 * Prompts that are given at once where there are many, for each slot: where one has ended, the next takes its place,
 * and only at the end of so many slots stay empty.
 */
export const PROMPTS_PER_SLOT = 4;

interface RolloutSettings {
  /** Sequences that decode together. */
  readonly slots: number;
  /** The most tokens of a rollout. */
  readonly tokens: number;
  /** Ids that end one. They belong to it: the model is rewarded for ending, too. */
  readonly stopIds: ReadonlySet<number>;
}

/** A prompt that is continued, once in each way. */
export interface Continued {
  readonly sample: Sample;
  /** [soft, hidden] */
  readonly soft: Float32Array;
  readonly samplings: readonly Sampling[];
}

/**
 * Tokens that are drawn, as likely as the model finds them at the authors' figures for self-critical training.
 * @param seed whole number below 2^53: the same one draws the same tokens
 */
export const drawing = (seed: number): Sampling => ({ ...GREEDY, temperature: 0.9, topP: 0.9, seed });

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
   * @param together as of {@link all}
   * @returns the ids that follow each prompt
   * @throws as {@link all}.
   */
  async greedy(
    samples: readonly Sample[],
    soft: readonly Float32Array[],
    signal?: AbortSignal,
    together?: number,
  ): Promise<(readonly number[])[]> {
    const prompts = samples.map((sample, i) => ({ sample, soft: soft[i]!, samplings: [GREEDY] }));
    return (await this.all(prompts, signal, together)).map(([ids]) => ids!);
  }

  /**
   * All continuations of all prompts. Each prompt is computed once, however often it is continued.
   * @param together the most sequences that decode together, where not all slots are to be computed: fewer rows take
   *   less time, and their last bits differ
   * @returns for each prompt, for each of its samplings: the ids that follow
   * @throws ServingError context_length_exceeded; training_diverged where the model gives a logit that is not a number;
   *   the signal's reason
   */
  async all(
    prompts: readonly Continued[],
    signal?: AbortSignal,
    together?: number,
  ): Promise<(readonly (readonly number[])[])[]> {
    const { tokens, stopIds } = this.#settings;
    const slots = Math.min(together ?? this.#settings.slots, this.#settings.slots);
    const found: (readonly Continuation[])[] = [];
    /** By slot: what it continues, and what of its prompt is still to be continued. */
    const running = new Array<Continuation>(slots);
    const left: Continuation[][] = Array.from({ length: slots }, () => []);
    const last = new Int32Array(slots).fill(NO_TOKEN);
    const lengths = new Int32Array(slots);
    const take = (slot: number, id: number) => {
      const { ids } = running[slot]!;
      ids.push(id);
      last[slot] = ids.length === tokens || stopIds.has(id) ? NO_TOKEN : id;
    };
    for (;;) {
      for (let slot = 0; slot < slots; slot++) {
        while (last[slot] === NO_TOKEN) {
          if (left[slot]!.length === 0 && found.length < prompts.length) {
            found.push(await this.#begin(slot, prompts[found.length]!, signal));
            left[slot]!.push(...found.at(-1)!);
          }
          const next = left[slot]!.shift();
          lengths[slot] = next?.sample.promptIds.length ?? 0;
          if (next === undefined) break;
          running[slot] = next;
          take(slot, next.first);
        }
      }
      if (last.every((id) => id === NO_TOKEN)) return found.map((ofPrompt) => ofPrompt.map(({ ids }) => ids));
      signal?.throwIfAborted();
      const logits = await this.#session.step(last, lengths);
      for (const [slot, id] of last.entries()) {
        if (id === NO_TOKEN) continue;
        lengths[slot]!++;
        const row = logits.subarray(slot * this.#vocab, (slot + 1) * this.#vocab);
        take(slot, chosen(running[slot]!, row, running[slot]!.ids.length));
      }
    }
  }

  /** Computes a prompt in a slot. @returns its continuations, each with its first token */
  async #begin(slot: number, { sample, soft, samplings }: Continued, signal?: AbortSignal): Promise<Continuation[]> {
    const { promptIds, softPositions } = sample;
    const chunk = {
      slot,
      past: 0,
      ids: Int32Array.from(promptIds),
      soft: { positions: Int32Array.from(softPositions), vectors: soft },
      logitRows: [promptIds.length - 1],
    };
    const logits = await this.#session.chunk(chunk, signal);
    return samplings.map((sampling) => ({
      sample,
      sampling,
      first: chosen({ sample, sampling }, logits.subarray(0, this.#vocab), 0),
      ids: [],
    }));
  }

  async dispose(): Promise<void> {
    await this.#session.dispose();
    await this.#session.pool.store.dispose();
  }
}

/** Where rollouts decode: on WebGPU, else on the CPU. Attention of CUDA takes 16-bit floats only. */
const deviceOf = ({ device }: ModelPlace): Device => (device?.kind === 'webgpu' ? device : CPU);

interface Continuation {
  readonly sample: Sample;
  readonly sampling: Sampling;
  /** Its first token, which the prompt's last logits give. */
  readonly first: number;
  /** Its tokens so far. */
  readonly ids: number[];
}

const NO_HISTORY = new OutputHistory(); // without penalties nothing is read of it

/** The token at a position of the rollout, from 0. */
function chosen(
  { sample: { name }, sampling }: Pick<Continuation, 'sample' | 'sampling'>,
  logits: Float32Array,
  position: number,
): number {
  try {
    return sample(logits, sampling, position, NO_HISTORY).id;
  } catch (error) {
    const cause = ServingError.from(error);
    if (cause.code !== 'runtime_failed') throw cause;
    throw new ServingError('training_diverged', `${name}: in its rollout ${cause.message}`, { cause });
  }
}
