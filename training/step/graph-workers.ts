/**
 * Child processes that each hold a session of one graph, for passes of several samples at a time. They map the same
 * file of weights, so its memory is there once; activations are there once for each process. The projector and the
 * optimiser stay with the parent: what goes back is the gradient at the soft tokens of one sample, some ten rows, so
 * nothing has to be reduced between processes, and sums are made in the order of the batch, whatever finished first.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import type { OrtSession, Tensor } from '../../services/lib/engine/ort.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

/** What a pass needs of a session. */
export type GraphRunner = Pick<OrtSession, 'run'> & {
  /** Runs that go on at a time; more wait for their turn. */
  readonly parallel: number;
  dispose(): void;
};

/** What a worker process is told to do, one thing at a time. */
export type WorkerTask =
  | { readonly do: 'load'; readonly path: string; readonly threads: number; readonly packWeights?: boolean | undefined }
  /** To answer at once, whatever it computes. */
  | { readonly do: 'beat' }
  | { readonly do: 'run'; readonly inputs: Readonly<Record<string, Tensor>>; readonly outputs: readonly string[] };
export type WorkerAnswer =
  | { readonly done: Record<string, Tensor> }
  | { readonly loaded: readonly string[] }
  | { readonly beats: true }
  | { readonly failed: string };

/** The file that a worker process runs. Only the built one can be run. */
const MODULE = join(PACKAGE_ROOT, 'dist', 'training', 'step', 'graph-worker.js');

/**
 * A worker computes off its event loop, so it answers a beat within milliseconds; one that is stopped, or hangs, does
 * not. Beats are counted, and not the time since the last answer: when a machine wakes up, or Ctrl-Z is taken back, no
 * beat was missed.
 */
const BEAT_MS = 5000;
/** Beats without an answer after which a worker is lost: a minute, in which also a machine that swaps gives one. */
const MOST_MISSED = 12;

interface Wait {
  readonly resolve: (answer: WorkerAnswer) => void;
  readonly reject: (error: unknown) => void;
}

/** One process. It works on one task at a time. */
class GraphWorker {
  readonly #child: ChildProcess;
  readonly #name: string;
  #wait: Wait | undefined;
  /** Why it has ended; undefined while it runs. */
  #ended: string | undefined;
  /** Beats since its last answer. */
  #missed = 0;
  readonly #pulse: NodeJS.Timeout;

  constructor(index: number, count: number) {
    // Typed arrays go through as they are.
    this.#child = fork(MODULE, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'], serialization: 'advanced' });
    this.#name = `training worker ${index + 1} of ${count} (process ${this.#child.pid})`;
    this.#child.on('message', (answer: WorkerAnswer) => {
      this.#missed = 0;
      if ('beats' in answer) return;
      const wait = this.#wait;
      this.#wait = undefined;
      wait?.resolve(answer);
    });
    this.#child.on('exit', (code, signal) => this.#end(signal ? `was ended by ${signal}` : `ended with code ${code}`));
    this.#child.on('error', (error) => this.#end(`cannot be reached: ${error.message}`));
    this.#pulse = setInterval(() => this.#beat(), BEAT_MS).unref();
  }

  #beat(): void {
    if (this.#missed === MOST_MISSED) {
      this.#end(`has not answered for ${(MOST_MISSED * BEAT_MS) / 1000} s: it was stopped, or hangs`);
      return;
    }
    this.#missed++;
    // Where it cannot be sent, the process has ended, and its exit is on the way.
    this.#child.send({ do: 'beat' } satisfies WorkerTask, () => {});
  }

  #end(why: string): void {
    clearInterval(this.#pulse);
    this.#ended ??= why;
    this.#wait?.reject(this.#lost());
    this.#wait = undefined;
  }

  #lost(): ServingError {
    return new ServingError('worker_lost', `${this.#name} ${this.#ended}`);
  }

  /**
   * @throws ServingError worker_lost where the process ends, or answers nothing for a minute; runtime_failed; the
   *   signal's reason.
   */
  async ask(task: WorkerTask, signal?: AbortSignal): Promise<Exclude<WorkerAnswer, { readonly failed: string }>> {
    signal?.throwIfAborted();
    if (this.#ended !== undefined) throw this.#lost();
    const abort = () => this.#wait?.reject(signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      const answer = await new Promise<WorkerAnswer>((resolve, reject) => {
        this.#wait = { resolve, reject };
        this.#child.send(task, (error) => error && this.#end(`cannot be reached: ${error.message}`));
      });
      if ('failed' in answer) throw new ServingError('runtime_failed', `${this.#name}: ${answer.failed}`);
      return answer;
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  /** Kills the process. @returns when it has ended */
  async stop(): Promise<void> {
    clearInterval(this.#pulse);
    const { pid, exitCode, signalCode } = this.#child;
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await ended;
  }
}

export class GraphWorkers implements GraphRunner {
  readonly parallel: number;
  readonly #workers: readonly GraphWorker[];
  readonly #free: GraphWorker[];
  /** Runs that wait for a free worker. */
  readonly #queue: ((worker: GraphWorker) => void)[] = [];
  #outputs: readonly string[] = [];
  #stopping: Promise<unknown> | undefined;

  private constructor(workers: readonly GraphWorker[]) {
    this.parallel = workers.length;
    this.#workers = workers;
    this.#free = [...workers];
  }

  /**
   * @param path of the graph's model.onnx, which may go when this returns
   * @param threads of each process
   * @throws ServingError worker_lost, runtime_failed; the signal's reason. No process is left then.
   */
  static async open(
    path: string,
    count: number,
    { threads, packWeights }: { readonly threads: number; readonly packWeights?: boolean | undefined },
    signal?: AbortSignal,
  ): Promise<GraphWorkers> {
    const pool = new GraphWorkers(Array.from({ length: count }, (_, i) => new GraphWorker(i, count)));
    try {
      const asked = pool.#workers.map((worker) => worker.ask({ do: 'load', path, threads, packWeights }, signal));
      for (const answer of await Promise.all(asked)) if ('loaded' in answer) pool.#outputs = answer.loaded;
      return pool;
    } catch (error) {
      await pool.close();
      throw error;
    }
  }

  /** @throws ServingError worker_lost, runtime_failed; the signal's reason. */
  async run(
    inputs: Readonly<Record<string, Tensor>>,
    outputs: readonly string[] = this.#outputs,
    signal?: AbortSignal,
  ): Promise<Record<string, Tensor>> {
    const worker = this.#free.pop() ?? (await new Promise<GraphWorker>((resolve) => this.#queue.push(resolve)));
    try {
      const answer = await worker.ask({ do: 'run', inputs, outputs }, signal);
      if (!('done' in answer)) throw new ServingError('runtime_failed', 'a training worker did not answer a run');
      return answer.done;
    } finally {
      const next = this.#queue.shift();
      if (next) next(worker);
      else this.#free.push(worker);
    }
  }

  dispose(): void {
    void this.close();
  }

  /** @returns when all processes have ended */
  async close(): Promise<void> {
    this.#stopping ??= Promise.all(this.#workers.map((worker) => worker.stop()));
    await this.#stopping;
  }
}
