/**
 * Continuous batching. Sequences join and leave between any two steps; a step decodes one token for every running
 * sequence at once. A step spans all slots from the lowest to the highest one with a running sequence. A step also
 * writes to idle slots in this range, just after their content (KvPool.claimed), where nothing reads it.
 *
 * A sequence that runs alone may take several tokens at once: a verify run computes tokens that it is likely to have
 * (speculation/), and each position is sampled with its own draw, up to the first that differs. So its tokens are those
 * that steps give. Positions behind the last token taken are not its content: the next run writes them again.
 */
import { Readable } from 'node:stream';
import { OutputHistory, sample } from '../lib/engine/sampler.ts';
import { NO_TOKEN, type Verifier } from '../lib/engine/session.ts';
import { NO_CHOICE, takesLikeliest } from '../lib/engine/token-picker.ts';
import type { KvPool, KvSlot } from '../lib/kv/pool.ts';
import { ServingError } from '../lib/process/errors.ts';
import { metrics, partOf } from '../lib/process/metrics.ts';
import type { FinishReason, SampledToken, Sampling } from '../lib/request/next-token.ts';
import { type Draft, type DraftIndex, type Drafts, NO_DRAFTS } from './speculation/draft-index.ts';
import { type Predicted, Speculator } from './speculation/speculator.ts';

/** One token of one sequence. */
export interface DecodeStep {
  readonly tokens: readonly SampledToken[];
  readonly finishReason: FinishReason | undefined;
  /** Set where tokens were proposed from the client's prediction. */
  readonly predicted?: Predicted | undefined;
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
  /** Runs of several tokens of one sequence; undefined where there are none. */
  readonly verifier?: Verifier | undefined;
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
  /** What its output may repeat; nothing but itself when not given. */
  readonly drafts?: Drafts;
}

/** Weight of the newest step in the average of its size. */
const NEWEST_WEIGHT = 0.1;
/** Age in ms from which an average does not count any more: what slowed its last step may be long over. */
const AVERAGE_LASTS_MS = 60_000;

/** The time that steps of one size take, in ms, and when the last one ended. */
interface StepAverage {
  readonly ms: number;
  readonly atMs: number;
}

/** Steps that a reader has not taken, from which on nothing is proposed: tokens come faster than they are read. */
const SLOW_READER_STEPS = 16;

/** A sequence in the loop. */
export class Sequence {
  readonly slot: KvSlot;
  readonly sampling: Sampling;
  readonly maxTokens: number;
  /** A stream of {@link DecodeStep}. It ends after the step that has a finishReason. */
  readonly steps = new Readable({ objectMode: true, read: () => {} });
  readonly history: OutputHistory;
  readonly joinedAtMs = performance.now();
  /** Where its next tokens may stand already; undefined without speculation. */
  readonly draftIndex: DraftIndex | undefined;
  /** The newest token. The KV does not hold it yet. */
  newest: number;
  /** Positions that the slot's KV holds. */
  length: number;
  /** Output tokens so far. */
  produced = 1;
  /** Set when the sequence wants no more tokens; called once no step touches its slot. */
  onLeft: (() => void) | undefined;

  constructor(from: NewSequence, speculator: Speculator | undefined) {
    this.slot = from.slot;
    this.sampling = from.sampling;
    this.maxTokens = from.maxTokens;
    this.newest = from.firstToken;
    this.length = from.positions;
    this.history = new OutputHistory(from.sampling.priorOutputIds);
    this.history.add(from.firstToken);
    const output = { prior: from.sampling.priorOutputIds, first: from.firstToken };
    this.draftIndex = speculator?.begin(from.drafts ?? NO_DRAFTS, output);
  }

  /** Place of the next token in the output, from 0. */
  get position(): number {
    return this.sampling.priorOutputIds.length + this.produced;
  }

  /** Takes its next token. @returns why it ends with it; undefined if it goes on. */
  take({ id }: SampledToken): FinishReason | undefined {
    this.history.add(id);
    this.draftIndex?.push(id);
    this.newest = id;
    this.produced++;
    return finishOf(id, this.produced, this.maxTokens, this.sampling);
  }
}

/** @throws ServingError runtime_failed where the device found no token. */
function picked(id: number, vocab: number): SampledToken {
  if (id !== NO_CHOICE) return { id };
  throw new ServingError('runtime_failed', `the largest of ${vocab} logits is not finite: no token can be chosen`);
}

const isFresh = (average: StepAverage | undefined, nowMs: number): average is StepAverage =>
  average !== undefined && nowMs - average.atMs < AVERAGE_LASTS_MS;

/** The input of one step: row i belongs to slot first + i. */
interface Batch {
  readonly first: number;
  readonly ids: Int32Array;
  readonly lengths: Int32Array;
  readonly sequences: readonly Sequence[];
}

export class DecodeLoop {
  readonly #engine: StepEngine;
  /** undefined where the engine verifies nothing. */
  readonly #speculator: Speculator | undefined;
  /** Called when the last sequence has left. */
  readonly #onIdle: () => void;
  /** By slot index. */
  readonly #running: (Sequence | undefined)[] = [];
  #joining: Sequence[] = [];
  readonly #countRunning = partOf(metrics.running);
  /** By the number of sequences, from one; undefined for sizes of which no step was made. */
  readonly #averages: (StepAverage | undefined)[] = [];
  #stepping = false;
  /** Resolves at the end of the current step. */
  #boundary: Promise<void> = Promise.resolve();

  constructor(engine: StepEngine, onIdle: () => void = () => {}) {
    this.#engine = engine;
    this.#speculator = engine.verifier && new Speculator(engine.verifier, engine.vocabSize);
    this.#onIdle = onIdle;
  }

  /** Adds a sequence to the batch, from the next step on. */
  join(from: NewSequence): Sequence {
    const sequence = new Sequence(from, this.#speculator);
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

  /**
   * Time that a step takes in ms, by the number of its sequences: the first value is that of one. Averages of the last
   * steps by the engine's time alone: choosing the tokens, sending them, and verify runs of several tokens are left
   * out, as are steps that failed. 0 where no step of that size was made in the last 60 s.
   */
  get stepMs(): readonly number[] {
    const nowMs = performance.now();
    return Array.from(this.#averages, (average) => (isFresh(average, nowMs) ? average.ms : 0));
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
      const draft = this.#propose(batch);
      try {
        if (draft === undefined) {
          const choose = await this.#step(batch);
          for (const sequence of batch.sequences) this.#emit(sequence, choose);
        } else await this.#verify(batch.sequences[0]!, draft);
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
    const engine = this.#engine;
    const picks =
      engine.picksTokens && sequences.every((sequence) => takesLikeliest(sequence.sampling, sequence.position));
    const stepping: Promise<Float32Array | Int32Array> = picks
      ? engine.pick(ids, lengths, first)
      : engine.step(ids, lengths, first);
    const { result: found, tookMs } = await this.#ran(stepping, sequences.length);
    this.#took(sequences.length, tookMs);
    if (sequences.length === 1) this.#speculator?.stepped();
    const vocab = engine.vocabSize;
    if (found instanceof Int32Array) return ({ slot }) => picked(found[slot.index - first] as number, vocab);
    return ({ slot, sampling, position, history }) => {
      const at = (slot.index - first) * vocab;
      return sample(found.subarray(at, at + vocab), sampling, position, history);
    };
  }

  #took(sequences: number, ms: number): void {
    const nowMs = performance.now();
    const average = this.#averages[sequences - 1];
    const beforeMs = isFresh(average, nowMs) ? average.ms : ms;
    this.#averages[sequences - 1] = { ms: beforeMs + NEWEST_WEIGHT * (ms - beforeMs), atMs: nowMs };
  }

  /** Waits for a run of the engine, for whoever waits for the end of the current step too. */
  async #ran<T>(run: Promise<T>, sequences: number): Promise<{ readonly result: T; readonly tookMs: number }> {
    const startedMs = performance.now();
    this.#boundary = run.then(
      () => {},
      () => {},
    );
    const result = await run;
    const tookMs = performance.now() - startedMs;
    metrics.stepTime.observe(tookMs / 1000);
    metrics.batchSize.observe(sequences);
    return { result, tookMs };
  }

  /** Tokens that the sequence may have next, if it runs alone and it is worth the time to look. */
  #propose({ sequences: [sequence, other] }: Batch): Draft | undefined {
    const index = sequence?.draftIndex;
    if (sequence === undefined || index === undefined || other !== undefined || this.#joining.length > 0)
      return undefined;
    if (sequence.onLeft || sequence.steps.readableLength >= SLOW_READER_STEPS) return undefined;
    return this.#speculator?.propose(index, sequence.maxTokens - sequence.produced - 1);
  }

  /** Computes a sequence's newest token and its draft in one run; hands out tokens up to the first other one. */
  async #verify(sequence: Sequence, draft: Draft): Promise<void> {
    const { slot, sampling, history } = sequence;
    const { verifier } = this.#speculator!;
    const ids = Int32Array.of(sequence.newest, ...draft.ids);
    const { result: logits } = await this.#ran(verifier.verify(slot.index, sequence.length, ids), 1);
    if (sequence.onLeft) return;
    const vocab = this.#engine.vocabSize;
    const tokens: SampledToken[] = [];
    let accepted = 0;
    let finishReason: FinishReason | undefined;
    for (let row = 0; row < ids.length && finishReason === undefined && accepted === row; row++) {
      const token = sample(logits.subarray(row * vocab, (row + 1) * vocab), sampling, sequence.position, history);
      tokens.push(token);
      sequence.length++;
      finishReason = sequence.take(token);
      if (token.id === draft.ids[row]) accepted++;
    }
    const predicted = this.#speculator!.verified(draft, accepted, tokens.length);
    sequence.steps.push({ tokens, finishReason, predicted } satisfies DecodeStep);
    if (finishReason) this.#finish(sequence);
  }

  /** Hands out a sequence's next token. */
  #emit(sequence: Sequence, choose: (sequence: Sequence) => SampledToken): void {
    sequence.length++;
    if (sequence.onLeft) return;
    try {
      const token = choose(sequence);
      const finishReason = sequence.take(token);
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
