/**
 * The bare engine beside a system under test: an {@link EngineSubject} in a process of its own. So it shares its native
 * library, threads and memory with no other engine, as a worker does not either.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { ServingError } from '../../services/lib/process/errors.ts';
import { pin } from '../system/cores.ts';
import type { Answer, Task } from './child.ts';
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
  readonly #child: ChildProcess;
  readonly #chunk: number;

  private constructor(child: ChildProcess, chunk: number) {
    this.#child = child;
    this.#chunk = chunk;
  }

  /** Loads the engine, and then pins all its threads, as is done with workers. */
  static async start({ cores, chunk, ...options }: BareOptions): Promise<BareEngine> {
    const child = fork(new URL('./child.js', import.meta.url), { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    const engine = new BareEngine(child, chunk);
    try {
      await engine.#ask({ do: 'load', options: { ...options, threads: cores.length, slots: 1 } });
      if (child.pid !== undefined) await pin(child.pid, cores);
      return engine;
    } catch (error) {
      engine.stop();
      throw error;
    }
  }

  /** Computes a prompt of `tokens` up to its first token. @returns the duration in ms, by the clock of the child. */
  async prefill(tokens: number): Promise<number> {
    return Number(await this.#ask({ do: 'prefill', tokens, chunk: this.#chunk }));
  }

  stop(): void {
    this.#child.kill('SIGKILL');
  }

  /** @throws ServingError internal if the task fails, takes too long, or the child dies. */
  #ask(task: Task): Promise<unknown> {
    const child = this.#child;
    return new Promise((resolve, reject) => {
      const settle = (done: () => void) => {
        clearTimeout(timer);
        child.off('message', onMessage).off('exit', onExit);
        done();
      };
      const fail = (why: string) =>
        settle(() => reject(new ServingError('internal', `the bare engine failed at ${task.do}: ${why}`)));
      const onMessage = (message: unknown) => {
        const answer = message as Answer;
        if ('error' in answer) fail(answer.error);
        else settle(() => resolve(answer.value));
      };
      const onExit = (code: number | null, signal: string | null) => fail(`its process ended (${code ?? signal})`);
      const timer = setTimeout(() => fail(`it took longer than ${TIMEOUT_MS} ms`), TIMEOUT_MS);
      child.once('message', onMessage).once('exit', onExit);
      child.send(task, (error) => error && fail(error.message));
    });
  }
}
