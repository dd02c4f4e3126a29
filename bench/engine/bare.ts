/**
 * The bare engine beside a system under test: {@link EngineSubject} in a process of its own, so that its native library,
 * its threads and its memory are nobody else's, as a worker's are.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { ServingError } from '../../services/lib/process/errors.ts';
import { pin } from '../system/cores.ts';
import type { Answer, Task } from './child.ts';
import type { SubjectOptions } from './subject.ts';

/** For one task: loading a large model is the longest. */
const TIMEOUT_MS = 300_000;

export interface BareOptions extends Omit<SubjectOptions, 'threads' | 'slots'> {
  /** What it may compute on, with a thread for each. */
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

  /** Loads and pins it as workers are: all threads, once they are there. */
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

  /** Milliseconds from a prompt of `tokens` to its first token, by the child's clock. */
  async prefill(tokens: number): Promise<number> {
    return Number(await this.#ask({ do: 'prefill', tokens, chunk: this.#chunk }));
  }

  stop(): void {
    this.#child.kill('SIGKILL');
  }

  /** @throws ServingError internal: of the child, or when it dies or takes too long. */
  #ask(task: Task): Promise<unknown> {
    const child = this.#child;
    return new Promise((resolve, reject) => {
      const settle = (done: () => void) => {
        clearTimeout(timer);
        child.off('message', onMessage).off('exit', onExit);
        done();
      };
      const fail = (why: string) =>
        settle(() => reject(new ServingError('internal', `the bare engine, ${task.do}: ${why}`)));
      const onMessage = (message: unknown) => {
        const answer = message as Answer;
        if ('error' in answer) fail(answer.error);
        else settle(() => resolve(answer.value));
      };
      const onExit = (code: number | null, signal: string | null) => fail(`the process ended (${code ?? signal})`);
      const timer = setTimeout(() => fail('took too long'), TIMEOUT_MS);
      child.once('message', onMessage).once('exit', onExit);
      child.send(task, (error) => error && fail(error.message));
    });
  }
}
