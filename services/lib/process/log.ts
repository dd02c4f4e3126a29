/** Logs: JSON lines on stderr, written by pino. Prompts, completions and keys never go into a log. */
import { type Logger, pino } from 'pino';

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
