/** Logs: JSON lines on stderr, written by pino. Prompts, completions and keys never go into a log. */
import { type DestinationStream, type Logger, pino, stdTimeFunctions } from 'pino';

export type { Logger };

/** Memory for lines that could not be written yet, in bytes; beyond it lines are dropped. */
const MAX_WAITING = 1024 * 1024;

/** @param service the role of the process, which stands on every line as `service`. */
export function createLogger(service: string, level: string): Logger {
  const stderr = pino.destination({ fd: 2, sync: true, maxLength: MAX_WAITING });
  // When the disk is full, lines are lost and the process goes on. flushSync, which `fatal` calls, would try for ever.
  stderr.on('error', () => {});
  stderr.flushSync = () => {};
  return pino({ level, base: { service, pid: process.pid } }, stderr);
}

/** Lines for others to keep, with the time as text. @param to where they go: `stdout`, or whatever writes a line. */
export function createRecorder(service: string, to: 'stdout' | DestinationStream, onLost: () => void): Logger {
  let destination = to;
  if (to === 'stdout') {
    const stdout = pino.destination({ fd: 1, sync: true, maxLength: MAX_WAITING });
    stdout.on('error', onLost).on('drop', onLost);
    stdout.flushSync = () => {};
    destination = stdout;
  }
  return pino({ base: { service }, timestamp: stdTimeFunctions.isoTime }, destination as DestinationStream);
}

/**
 * Lets through the first of many lines of one kind, and then one line per window that stands for all that came in it.
 * What strangers can cause as often as they like must not fill the log.
 * @param write writes the newest line. `count` is how many it stands for.
 */
export function throttled<F>(windowMs: number, write: (fields: F, count: number) => void): (fields: F) => void {
  let open = true;
  let newest: F;
  let count = 0;
  const flush = () => {
    open = count === 0;
    if (open) return;
    write(newest, count);
    count = 0;
    setTimeout(flush, windowMs).unref();
  };
  return (fields) => {
    newest = fields;
    count++;
    if (open) flush();
  };
}
