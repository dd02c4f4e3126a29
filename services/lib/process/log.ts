/** Logs: JSON lines on stderr by pino. Prompts, completions and keys never go into them. */
import { type Logger, pino } from 'pino';

export type { Logger };

/** @param service name of the process's role, on every line as `service`. */
export function createLogger(service: string, level: string): Logger {
  return pino({ level, base: { service, pid: process.pid } }, pino.destination({ fd: 2, sync: true }));
}
