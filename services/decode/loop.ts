/**
 * Continuous batching. Sequences join and leave between any two steps; a step decodes one token for every running
 * sequence at once. A step spans all slots from the lowest to the highest one with a running sequence. A step also
 * writes to idle slots in this range, just after their content (KvPool.claimed), where nothing reads it.
 */
import { Readable } from 'node:stream';
import { OutputHistory, sample } from '../lib/engine/sampler.ts';
import { NO_TOKEN } from '../lib/engine/session.ts';
import { NO_CHOICE, takesLikeliest } from '../lib/engine/token-picker.ts';
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import { ServingError } from '../lib/process/errors.ts';
import { metrics, partOf } from '../lib/process/metrics.ts';
import type { FinishReason, SampledToken, Sampling } from '../lib/request/next-token.ts';

/** One token of one sequence. */
export interface DecodeStep {
  readonly tokens: readonly SampledToken[];
  readonly finishReason: FinishReason | undefined;
}

/** The part of DecoderSession that the loop uses. */
export interface StepEngine {
  readonly vocabSize: number;
  readonly pool: Pick<KvPool, 'claimed'>;
  readonly overdueMs: number;
  step(ids: Int32Array, lengths: Int32Array, first: number): Promise<Float32Array>;
  /** Whether the engine can choose the likeliest tokens itself, which saves fetching the logits from a device. */
  readonly picksTokens: boolean;
  pick(ids: Int32Array, lengths: Int32Array, first: number): Promise<Int32Array>;
}

export interface NewSequence {
  readonly slot: KvSlot;
  readonly sampling: Sampling;
  /** Prompt positions that the slot's KV holds. */
  readonly positions: number;
  /** Sampled by prefill. The KV does not hold it yet. */
  readonly firstToken: number;
  /** Limit of the whole output, first token included. */
  readonly maxTokens: number;
}

/** A sequence in the loop. */
export class Sequence {
  readonly slot: KvSlot;
  readonly sampling: Sampling;
  readonly maxTokens: number;
  /** A stream of {@link DecodeStep}. It ends after the step that has a finishReason. */
  readonly steps = new Readable({ objectMode: true, read: () => {} });
  readonly history: OutputHistory;
  readonly joinedAtMs = performance.now();
  /** The newest token. The KV does not hold it yet. */
  newest: number;
  /** Positions that the slot's KV holds. */
  length: number;
  /** Output tokens so far. */
  produced = 1;
  /** Set when the sequence wants no more tokens; called once no step touches its slot. */
  onLeft: (() => void) | undefined;

  constructor(from: NewSequence) {
    this.slot = from.slot;
    this.sampling = from.sampling;
    this.maxTokens = from.maxTokens;
    this.newest = from.firstToken;
    this.length = from.positions;
    this.history = new OutputHistory(from.sampling.priorOutputIds);
    this.history.add(from.firstToken);
  }

  /** Place of the next token in the output, from 0. */
  get position(): number {
    return this.sampling.priorOutputIds.length + this.produced;
  }
}

/** @throws ServingError runtime_failed where the device found no token. */
function picked(id: number, vocab: number): SampledToken {
  if (id !== NO_CHOICE) return { id };
  throw new ServingError('runtime_failed', `the largest of ${vocab} logits is not finite: no token can be chosen`);
}

/** The input of one step: row i belongs to slot first + i. */
interface Batch {
  readonly first: number;
  readonly ids: Int32Array;
  readonly lengths: Int32Array;
  readonly sequences: readonly Sequence[];
}

export class DecodeLoop {
  readonly #engine: StepEngine;
  /** Called when the last sequence has left. */
  readonly #onIdle: () => void;
  /** By slot index. */
  readonly #running: (Sequence | undefined)[] = [];
  #joining: Sequence[] = [];
  readonly #countRunning = partOf(metrics.running);
  #stepping = false;
  /** Resolves at the end of the current step. */
  #boundary: Promise<void> = Promise.resolve();

  constructor(engine: StepEngine, onIdle: () => void = () => {}) {
    this.#engine = engine;
    this.#onIdle = onIdle;
  }

  /** Adds a sequence to the batch, from the next step on. */
  join(from: NewSequence): Sequence {
    const sequence = new Sequence(from);
    this.#joining.push(sequence);
    if (!this.#stepping) void this.#run();
    return sequence;
  }

  /** Resolves when the sequence is out of the batch: only then may its slot serve another. */
  leave(sequence: Sequence): Promise<void> {
    this.#joining = this.#joining.filter((other) => other !== sequence);
    if (this.#running[sequence.slot.index] !== sequence) return Promise.resolve();
    return new Promise((resolve) => {
      sequence.onLeft = resolve;
    });
  }

  /** Sequences in the batch. */
  get size(): number {
    return this.#running.filter(Boolean).length;
  }

  /** Waits for the end of the current step, which may still write to a slot that was reserved after the step began. */
  betweenSteps(): Promise<void> {
    return this.#boundary;
  }

  async #run(): Promise<void> {
    this.#stepping = true;
    this.#joinBatch();
    while (this.#running.length > 0) {
      const batch = this.#schedule();
      try {
        const choose = await this.#step(batch);
        for (const sequence of batch.sequences) this.#emit(sequence, choose);
      } catch (error) {
        for (const sequence of batch.sequences) this.#fail(sequence, error);
      }
      this.#retire();
      this.#joinBatch();
    }
    this.#stepping = false;
    this.#onIdle();
  }

  /** Takes the sequences that joined into the batch. */
  #joinBatch(): void {
    for (const sequence of this.#joining) this.#running[sequence.slot.index] = sequence;
    this.#joining = [];
    this.#countRunning(this.size);
  }

  #schedule(): Batch {
    const first = this.#running.findIndex((sequence) => sequence !== undefined);
    const n = this.#running.length - first;
    const ids = new Int32Array(n).fill(NO_TOKEN);
    const lengths = new Int32Array(n);
    const sequences: Sequence[] = [];
    for (let row = 0; row < n; row++) {
      const sequence = this.#running[first + row];
      if (sequence === undefined) {
        lengths[row] = this.#engine.pool.claimed(first + row);
        continue;
      }
      ids[row] = sequence.newest;
      lengths[row] = sequence.length;
      sequences.push(sequence);
    }
    return { first, ids, lengths, sequences };
  }

  /** @returns chooses the next token of each sequence of the batch. */
  async #step({ first, ids, lengths, sequences }: Batch): Promise<(sequence: Sequence) => SampledToken> {
    const startedMs = performance.now();
    const engine = this.#engine;
    const picks =
      engine.picksTokens && sequences.every((sequence) => takesLikeliest(sequence.sampling, sequence.position));
    const stepping = picks ? engine.pick(ids, lengths, first) : engine.step(ids, lengths, first);
    this.#boundary = stepping.then(
      () => {},
      () => {},
    );
    const found = await stepping;
    metrics.stepTime.observe((performance.now() - startedMs) / 1000);
    metrics.batchSize.observe(sequences.length);
    const vocab = engine.vocabSize;
    if (found instanceof Int32Array) return ({ slot }) => picked(found[slot.index - first] as number, vocab);
    return ({ slot, sampling, position, history }) => {
      const at = (slot.index - first) * vocab;
      return sample(found.subarray(at, at + vocab), sampling, position, history);
    };
  }

  /** Hands out a sequence's next token. */
  #emit(sequence: Sequence, choose: (sequence: Sequence) => SampledToken): void {
    sequence.length++;
    if (sequence.onLeft) return;
    try {
      const token = choose(sequence);
      sequence.history.add(token.id);
      sequence.newest = token.id;
      sequence.produced++;
      const finishReason = finishOf(token.id, sequence.produced, sequence.maxTokens, sequence.sampling);
      const step: DecodeStep = { tokens: [token], finishReason };
      sequence.steps.push(step);
      if (finishReason) this.#finish(sequence);
    } catch (error) {
      this.#fail(sequence, error);
    }
  }

  #finish(sequence: Sequence): void {
    metrics.decodeTime.observe((performance.now() - sequence.joinedAtMs) / 1000);
    sequence.steps.push(null);
    sequence.onLeft ??= () => {};
  }

  #fail(sequence: Sequence, error: unknown): void {
    sequence.steps.destroy(error instanceof Error ? error : new Error(String(error)));
    sequence.onLeft ??= () => {};
  }

  /** Removes the sequences that have finished, failed or left from the batch. */
  #retire(): void {
    for (const [slot, sequence] of this.#running.entries()) {
      if (sequence?.onLeft === undefined) continue;
      this.#running[slot] = undefined;
      sequence.onLeft();
    }
    while (this.#running.length > 0 && this.#running.at(-1) === undefined) this.#running.pop();
  }
}

/** The reason why a sequence ends with this token as its `produced`-th output token; undefined if it goes on. */
export function finishOf(
  id: number,
  produced: number,
  maxTokens: number,
  sampling: Sampling,
): FinishReason | undefined {
  if (sampling.stopTokenIds.includes(id)) return 'stop';
  return produced >= maxTokens ? 'length' : undefined;
}
