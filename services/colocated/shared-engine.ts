/**
 * One engine for prompts and decode steps. They take turns, first come, first served. Both loops ask again as soon as
 * they have been served, so that prompt chunks and decode steps alternate and a sequence waits for one chunk at most.
 */
import type { StepEngine } from '../decode/loop.ts';
import type { PromptChunk, Verifier } from '../lib/engine/session.ts';
import type { KvPool } from '../lib/kv/pool.ts';
import type { PromptEngine } from '../prefill/prompt-computation.ts';

export class SharedEngine implements PromptEngine, StepEngine {
  readonly #engine: PromptEngine & StepEngine;
  #last: Promise<unknown> = Promise.resolve();

  readonly verifier: Verifier | undefined;

  constructor(engine: PromptEngine & StepEngine) {
    this.#engine = engine;
    const { verifier } = engine;
    this.verifier = verifier && {
      rows: verifier.rows,
      costMs: (rows) => verifier.costMs(rows),
      verify: (slot, past, ids) => this.inTurn(() => verifier.verify(slot, past, ids)),
    };
  }

  get pool(): KvPool {
    return this.#engine.pool;
  }

  get vocabSize(): number {
    return this.#engine.vocabSize;
  }

  get hiddenSize(): number {
    return this.#engine.hiddenSize;
  }

  get overdueMs(): number {
    return this.#engine.overdueMs;
  }

  chunk(chunk: PromptChunk, signal?: AbortSignal): Promise<Float32Array> {
    return this.inTurn(() => this.#engine.chunk(chunk, signal));
  }

  step(ids: Int32Array, lengths: Int32Array, first = 0): Promise<Float32Array> {
    return this.inTurn(() => this.#engine.step(ids, lengths, first));
  }

  get picksTokens(): boolean {
    return this.#engine.picksTokens;
  }

  pick(ids: Int32Array, lengths: Int32Array, first = 0): Promise<Int32Array> {
    return this.inTurn(() => this.#engine.pick(ids, lengths, first));
  }

  /** Runs `work` when everything that was asked for earlier is done. Nothing else runs meanwhile. */
  inTurn<T>(work: () => T | Promise<T>): Promise<T> {
    const turn = this.#last.then(work);
    this.#last = turn.catch(() => {});
    return turn;
  }
}
