/** A command in a real pseudo-terminal (util-linux's `script`), with keys and a size. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const CLI = join(PACKAGE_ROOT, 'dist', 'services', 'cli.js');
export const CTRL_C = '\x03';

export interface TerminalOptions {
  /** Columns of the terminal; 0 as `ssh -tt` from cron has them. */
  readonly columns?: number;
  readonly env?: Readonly<Record<string, string>>;
}

export class Terminal {
  readonly #child: ChildProcess;
  #output = '';
  #onOutput: () => void = () => {};
  readonly #exit: Promise<number | null>;

  constructor(child: ChildProcess) {
    this.#child = child;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#output += text;
      this.#onOutput();
    });
    this.#exit = once(child, 'close').then(([code]) => code as number | null);
    void this.#exit.then(() => this.#onOutput());
  }

  get output(): string {
    return this.#output;
  }

  /** Resolves when the output has `text`. @throws Error when the command ends without it. */
  async shows(text: string): Promise<void> {
    while (!this.#output.includes(text)) {
      if (this.#child.exitCode !== null) throw new Error(`ended without showing ${text}:\n${this.#output}`);
      await new Promise<void>((resolve) => {
        this.#onOutput = resolve;
      });
    }
  }

  press(keys: string): void {
    this.#child.stdin?.write(keys);
  }

  /** The exit code, as a shell reports it: 130 for a command that SIGINT ended. */
  exited(): Promise<number | null> {
    return this.#exit;
  }
}

/** Runs `llavacode` with these words; it is killed, with all that it started, when the test ends. */
export function inTerminal(words: readonly string[], { columns = 80, env = {} }: TerminalOptions = {}): Terminal {
  const quoted = [process.execPath, CLI, ...words].map((word) => `'${word}'`).join(' ');
  const child = spawn('script', ['-qfec', `stty cols ${columns} && exec ${quoted}`, '/dev/null'], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, TERM: 'xterm', ...env },
  });
  onTestFinished(() => {
    child.kill('SIGKILL'); // its children's terminal is gone then: SIGHUP ends them
  });
  return new Terminal(child);
}
