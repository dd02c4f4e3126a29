/**
 * The bare engine beside a system under test: an {@link EngineSubject} in a process of its own. So it shares its native
 * library, threads and memory with no other engine, as a worker does not either.
 */
import { TaskProcess } from '../harness/task-process.ts';
import { pin } from '../system/cores.ts';
import type { Task } from './child.ts';
import type { SubjectOptions } from './subject.ts';

/** Limit for one task: loading a large model takes the longest. */
const TIMEOUT_MS = 300_000;

interface BareOptions extends Omit<SubjectOptions, 'threads' | 'slots'> {
  /** Cores that it may use, with one thread for each. */
  readonly cores: readonly number[];
  /** Tokens of one prompt chunk. */
  readonly chunk: number;
}

export class BareEngine {
  readonly #process = new TaskProcess<Task>(new URL('./child.js', import.meta.url), 'the bare engine');
  readonly #chunk: number;

  private constructor(chunk: number) {
    this.#chunk = chunk;
  }

  /** Loads the engine, and then pins all its threads, as is done with workers. */
  static async start({ cores, chunk, ...options }: BareOptions): Promise<BareEngine> {
    const engine = new BareEngine(chunk);
    try {
      await engine.#ask({ do: 'load', options: { ...options, threads: cores.length, slots: 1 } });
      if (engine.#process.pid !== undefined) await pin(engine.#process.pid, cores);
      return engine;
    } catch (error) {
      await engine.stop();
      throw error;
    }
  }

  /** Computes a prompt of `tokens` up to its first token. @returns the duration in ms, by the clock of the child. */
  async prefill(tokens: number): Promise<number> {
    return Number(await this.#ask({ do: 'prefill', tokens, chunk: this.#chunk }));
  }

  async stop(): Promise<void> {
    await this.#process.stop();
  }

  /** @throws ServingError internal if the task fails or the child dies; a TimeoutError if it takes too long. */
  #ask(task: Task): Promise<unknown> {
    return this.#process.ask(task, AbortSignal.timeout(TIMEOUT_MS));
  }
}
