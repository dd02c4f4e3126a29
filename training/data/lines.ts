/**
 * Results that are dear to compute, kept by the digest of their content: one line of JSON each, appended as they are
 * made. Several runs may share a file. A process that is killed may leave a line that is cut short: such a line is
 * skipped, and computed again.
 */
import { createHash } from 'node:crypto';
import { appendFile, readFile } from 'node:fs/promises';
import { z } from 'zod';
import { atPath } from '../../services/lib/process/os-errors.ts';

/** SHA-256 of values of JSON, in hex. */
export const contentKey = (...parts: readonly unknown[]): string =>
  createHash('sha256').update(JSON.stringify(parts)).digest('hex');

export class KeptLines<T extends object> {
  readonly #path: string;
  readonly #kept: Map<string, T>;

  private constructor(path: string, kept: Map<string, T>) {
    this.#path = path;
    this.#kept = kept;
  }

  /**
   * @param schema of the results; lines that have another form are skipped
   * @throws ServingError path_unusable
   */
  static async open<T extends object>(path: string, schema: z.ZodType<T>): Promise<KeptLines<T>> {
    const line = z.object({ key: z.string(), value: schema });
    const kept = new Map<string, T>();
    await atPath(path, async () => {
      const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return '';
        throw error;
      });
      for (const one of text.split('\n')) {
        const found = line.safeParse(parsed(one));
        if (found.success) kept.set(found.data.key, found.data.value);
      }
      if (text !== '' && !text.endsWith('\n')) await appendFile(path, '\n');
    });
    return new KeptLines(path, kept);
  }

  get(key: string): T | undefined {
    return this.#kept.get(key);
  }

  /** Appends the results at once. @throws ServingError path_unusable */
  async add(results: ReadonlyMap<string, T>): Promise<void> {
    const lines = [...results].map(([key, value]) => `${JSON.stringify({ key, value })}\n`);
    await atPath(this.#path, () => appendFile(this.#path, lines.join('')));
    for (const [key, value] of results) this.#kept.set(key, value);
  }
}

/** The value of a line; undefined for one that is damaged. */
function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
