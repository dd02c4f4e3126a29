/** The figures of a run, one line of JSON for each step and each validation: `log.jsonl` in the run's folder. */
import { appendFile, readFile } from 'node:fs/promises';
import { atPath } from '../../services/lib/process/os-errors.ts';
import { writeWhole } from './files.ts';

export class RunLog {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /**
   * Opens the log of a run that goes on after a number of steps: lines of later steps are removed, since these steps
   * are computed again.
   * @throws ServingError path_unusable
   */
  static async open(path: string, steps: number): Promise<RunLog> {
    await atPath(path, async () => {
      const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return '';
        throw error;
      });
      const kept = text.split('\n').filter((line) => (stepOf(line) ?? Number.POSITIVE_INFINITY) <= steps);
      await writeWhole(path, kept.map((line) => `${line}\n`).join(''));
    });
    return new RunLog(path);
  }

  /** @throws ServingError path_unusable */
  async write(figures: { readonly step: number } & Readonly<Record<string, number>>): Promise<void> {
    await atPath(this.#path, () => appendFile(this.#path, `${JSON.stringify(figures)}\n`));
  }
}

/** The step of a line; undefined for one that was cut short. */
function stepOf(line: string): number | undefined {
  try {
    return (JSON.parse(line) as { step?: number }).step;
  } catch {
    return undefined;
  }
}
