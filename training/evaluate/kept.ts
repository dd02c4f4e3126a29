/**
 * The judgements of one evaluation, kept in a file as they are made: the first line says of what they are, and each
 * further one has one sample's, in the order of the data set. An evaluation that was killed goes on after the last
 * whole line; judgements of something else are discarded.
 */
import { appendFile, readFile, truncate, writeFile } from 'node:fs/promises';
import { isDeepStrictEqual } from 'node:util';
import { atPath } from '../../services/lib/process/os-errors.ts';
import type { Arm } from '../choices.ts';
import type { Judgement } from './judge.ts';

/** All that a judgement depends on besides its sample. */
export interface EvaluationInputs {
  readonly arm: Arm;
  /** Digests. */
  readonly model: string;
  readonly data: string;
  /** Those of an evaluation with soft tokens alone. */
  readonly projector?: string;
  readonly encoder?: string;
  readonly settings: Readonly<Record<string, number>>;
}

export class KeptJudgements {
  readonly #path: string;
  readonly #made: Judgement[];

  private constructor(path: string, made: Judgement[]) {
    this.#path = path;
    this.#made = made;
  }

  /** @throws ServingError path_unusable */
  static async open(path: string, inputs: EvaluationInputs): Promise<KeptJudgements> {
    return atPath(path, async () => {
      const bytes = await readFile(path).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return Buffer.alloc(0);
        throw error;
      });
      const whole = bytes.subarray(0, bytes.lastIndexOf('\n') + 1);
      const values = whole.toString('utf8').split('\n').slice(0, -1).map(parsed);
      const known = isDeepStrictEqual(values[0], JSON.parse(JSON.stringify(inputs)));
      if (known && !values.includes(undefined)) {
        await truncate(path, whole.length);
        return new KeptJudgements(path, values.slice(1) as Judgement[]);
      }
      await writeFile(path, `${JSON.stringify(inputs)}\n`);
      return new KeptJudgements(path, []);
    });
  }

  get made(): readonly Judgement[] {
    return this.#made;
  }

  /** @throws ServingError path_unusable */
  async add(judgements: readonly Judgement[]): Promise<void> {
    const lines = judgements.map((judgement) => `${JSON.stringify(judgement)}\n`).join('');
    await atPath(this.#path, () => appendFile(this.#path, lines));
    this.#made.push(...judgements);
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
