/** The figures of a run, one line of JSON for each step and each validation: `log.jsonl` in the run's folder. */
import { appendFile, readFile } from 'node:fs/promises';
import { atPath } from '../../services/lib/process/os-errors.ts';
import type { Figures } from '../report/page.ts';
import { writeWhole } from './files.ts';

export class RunLog {
  readonly #path: string;
  readonly #records: Figures[];

  private constructor(path: string, records: Figures[]) {
    this.#path = path;
    this.#records = records;
  }

  /** All lines, the oldest first. */
  get records(): readonly Figures[] {
    return this.#records;
  }

  /**
   * Opens the log of a run that goes on after a number of steps: lines of later steps are removed, since these steps
   * are computed again. At 0 steps nothing is kept: the validation before the first step is made again as well.
   * @param due whether the projector is to be looked at again after the last step
   * @throws ServingError path_unusable
   */
  static async open(path: string, steps: number, due = false): Promise<RunLog> {
    const records = await atPath(path, async () => {
      const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return '';
        throw error;
      });
      const kept = text
        .split('\n')
        .flatMap((line) => figuresOf(line) ?? [])
        .filter(({ step }) => steps > 0 && step <= steps)
        .filter((figures) => !(due && figures.step === steps && 'meanCosine' in figures));
      await writeWhole(path, kept.map((figures) => `${JSON.stringify(figures)}\n`).join(''));
      return kept;
    });
    return new RunLog(path, records);
  }

  /** @throws ServingError path_unusable */
  async write(figures: Figures): Promise<void> {
    this.#records.push(figures);
    await atPath(this.#path, () => appendFile(this.#path, `${JSON.stringify(figures)}\n`));
  }
}

/** The figures of a line; undefined for one that was cut short. */
function figuresOf(line: string): Figures | undefined {
  try {
    const figures = JSON.parse(line) as Figures;
    return typeof figures.step === 'number' ? figures : undefined;
  } catch {
    return undefined;
  }
}
