import type { Logger } from '../../services/lib/process/log.ts';

/** A logger that keeps its lines. */
export function keepingLog(lines: Record<string, unknown>[], bindings: object = {}): Logger {
  const keep =
    (level: string) =>
    (fields: object | string, message = '') => {
      const line = typeof fields === 'string' ? { message: fields } : { ...fields, message };
      lines.push({ level, ...bindings, ...line });
    };
  const levels = Object.fromEntries(
    ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'].map((level) => [level, keep(level)]),
  );
  const child = (more: object) => keepingLog(lines, { ...bindings, ...more });
  return { ...levels, level: 'info', child } as unknown as Logger;
}
