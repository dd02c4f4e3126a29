/** One engine in a child process, which gets tasks over IPC. */
import { fork } from 'node:child_process';

/** Limit for one task: loading a large model takes the longest. */
const TIMEOUT_MS = 300_000;

export class Contestant {
  #child;

  /** @param script path of a file that speaks the protocol of bench/engine/child.ts. */
  constructor(name, script) {
    this.name = name;
    this.#child = fork(script, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  }

  /** @throws Error if the task fails, takes too long, or the child dies. */
  ask(task) {
    const child = this.#child;
    const what = `${this.name}: ${task.do}`;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => settle(reject, new Error(`${what} took too long`)), TIMEOUT_MS);
      const onMessage = ({ value, error }) =>
        error === undefined ? settle(resolve, value) : settle(reject, new Error(`${what}: ${error}`));
      const onExit = (code, signal) => settle(reject, new Error(`${what}: the process ended (${code ?? signal})`));
      const settle = (how, result) => {
        clearTimeout(timer);
        child.off('message', onMessage).off('exit', onExit);
        how(result);
      };
      child.once('message', onMessage).once('exit', onExit);
      child.send(task);
    });
  }

  stop() {
    this.#child.kill('SIGKILL');
  }
}
