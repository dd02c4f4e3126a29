/**
 * A child process that does one task at a time, over IPC: what it measures shares its native library, threads and
 * memory with nothing else, and a crash costs one task. Both ends are here: {@link TaskProcess} asks, and
 * {@link serveTasks} answers.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { ServingError } from '../../services/lib/process/errors.ts';

type Answer = { readonly value: unknown } | { readonly error: string };

export class TaskProcess<Task extends { readonly do: string }> {
  readonly #child: ChildProcess;
  readonly #name: string;

  /**
   * @param module the child's file, which calls {@link serveTasks}.
   * @param name what the process is, for error messages: `the bare engine`.
   */
  constructor(module: URL, name: string) {
    this.#name = name;
    // Typed arrays go through as they are.
    this.#child = fork(module, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'], serialization: 'advanced' });
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /**
   * @throws ServingError internal if the task fails or the process ends; the signal's reason, after which the process
   *   is still busy and should be stopped.
   */
  ask(task: Task, signal: AbortSignal): Promise<unknown> {
    const child = this.#child;
    return new Promise((resolve, reject) => {
      const settle = (done: () => void) => {
        signal.removeEventListener('abort', onAbort);
        child.off('message', onMessage).off('exit', onExit);
        done();
      };
      const fail = (why: string) =>
        settle(() => reject(new ServingError('internal', `${this.#name} failed at ${task.do}: ${why}`)));
      const onMessage = (message: unknown) => {
        const answer = message as Answer;
        if ('error' in answer) fail(answer.error);
        else settle(() => resolve(answer.value));
      };
      const onExit = (code: number | null, killed: string | null) => fail(`its process ended (${code ?? killed})`);
      const onAbort = () => settle(() => reject(signal.reason));
      if (signal.aborted) return reject(signal.reason);
      if (child.exitCode !== null || child.signalCode !== null) return onExit(child.exitCode, child.signalCode);
      signal.addEventListener('abort', onAbort, { once: true });
      child.once('message', onMessage).once('exit', onExit);
      child.send(task, (error) => error && fail(error.message));
    });
  }

  /** Kills the process. @returns when it has ended, and the system has freed what it held. */
  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await ended;
  }
}

/** The child's end: performs each task, and ends with its parent. */
export function serveTasks<Task>(perform: (task: Task) => Promise<unknown>): void {
  process.on('message', (task: Task) => {
    const answer = (message: Answer) => process.send?.(message);
    perform(task).then(
      (value) => answer({ value }),
      (error: unknown) => answer({ error: error instanceof Error ? error.message : String(error) }),
    );
  });
  process.on('disconnect', () => process.exit(0));
}
