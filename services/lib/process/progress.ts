/**
 * The progress of a command, on stderr: a spinner where a person watches, and one plain line per step elsewhere (no
 * terminal, a terminal of 0 columns, NO_COLOR, TERM=dumb). The only importer of ora.
 */
import type { WriteStream } from 'node:tty';
import ora from 'ora';

export interface Progress {
  /** Begins a step. */
  start(text: string): void;
  /** Changes the text of the step that runs. Where nobody watches, see {@link startProgress}. */
  update(text: string): void;
  succeed(text: string): void;
  warn(text: string): void;
  /** Ends the step that runs as failed; nothing where none runs. */
  fail(): void;
}

interface ProgressOptions {
  readonly stream?: NodeJS.WritableStream;
  /**
   * Where nobody watches: ms after the latest line from which on a changed text is a line of its own, so that the log
   * of a command of hours says where it stands. Without it changed texts are not written there.
   */
  readonly linesEveryMs?: number;
  /** The monotonic clock, in ms. */
  readonly now?: () => number;
}

/** @param text the first step. */
export function startProgress(text: string, options: ProgressOptions = {}): Progress {
  const { stream = process.stderr, linesEveryMs = Number.POSITIVE_INFINITY, now = () => performance.now() } = options;
  const progress = isWatched(stream) ? spinner(stream) : plainLines(stream, linesEveryMs, now);
  progress.start(text);
  return progress;
}

/**
 * On 0 columns (`ssh -tt` from cron) ora would count lines for ever; without colors the terminal may not move its
 * cursor.
 */
function isWatched(stream: NodeJS.WritableStream): boolean {
  const { isTTY, columns } = stream as Partial<WriteStream>;
  return isTTY === true && (columns ?? 0) > 0 && (stream as WriteStream).hasColors();
}

function spinner(stream: NodeJS.WritableStream): Progress {
  // With discardStdin ora would read the terminal in raw mode, where Ctrl-C is not a signal but a character.
  const shown = ora({ stream, discardStdin: false });
  return {
    start: (text) => void shown.start(text),
    update: (text) => {
      shown.text = text;
    },
    succeed: (text) => void shown.succeed(text),
    warn: (text) => void shown.warn(text),
    fail: () => {
      if (shown.isSpinning) shown.fail();
    },
  };
}

function plainLines(stream: NodeJS.WritableStream, linesEveryMs: number, now: () => number): Progress {
  let running: string | undefined;
  let writtenMs = now();
  const write = (mark: string, text: string) => {
    writtenMs = now();
    stream.write(`${mark} ${text}\n`);
  };
  const end = (mark: string, text: string) => {
    running = undefined;
    write(mark, text);
  };
  return {
    start: (text) => {
      running = text;
      write('-', text);
    },
    update: (text) => {
      running = text;
      if (now() - writtenMs >= linesEveryMs) write('-', text);
    },
    succeed: (text) => end('✔', text),
    warn: (text) => end('⚠', text),
    fail: () => {
      if (running !== undefined) end('✖', running);
    },
  };
}
