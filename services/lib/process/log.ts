/** Logs: JSON lines on stderr by pino. Prompts, completions and keys never go into them. */
import { type Logger, pino } from 'pino';

export type { Logger };

/** Of lines that could not be written. */
const MAX_WAITING = 1024 * 1024;

/** @param service name of the process's role, on every line as `service`. */
export function createLogger(service: string, level: string): Logger {
  const stderr = pino.destination({ fd: 2, sync: true, maxLength: MAX_WAITING });
  // A disk that is full costs lines, not whoever writes them. There is nothing to flush but these, and `fatal` would for ever.
  stderr.on('error', () => {});
  stderr.flushSync = () => {};
  return pino({ level, base: { service, pid: process.pid } }, stderr);
}
