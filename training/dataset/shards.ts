/**
 * The shards of a data set while it is made, and where a run that was stopped goes on: after the last shard, which ends
 * with a repository, or after the last repository where the run had time to keep the samples that waited for their
 * shard. `work/state.json` is replaced when a shard, or these samples, and the files that were seen up to it are on
 * disk.
 */
import { createHash } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { gzip } from 'node:zlib';
import { ServingError } from '../../services/lib/process/errors.ts';
import { atPath, makeFolder, reasonOf } from '../../services/lib/process/os-errors.ts';
import type { Shard, Split } from '../data/manifest.ts';
import { writeWhole } from '../run/files.ts';
import type { SampleRow } from './sample-row.ts';
import type { SeenFiles } from './seen-files.ts';
import { type Counts, noCounts } from './statistics.ts';

interface State {
  /** Settings and repositories; a run with others does not go on here. */
  readonly recipe: string;
  /** Repositories that are done. */
  readonly done: number;
  /** Checkpoints so far. */
  readonly checkpoints: number;
  /** Whether samples wait for their shard in {@link waitingFile}, since the run was asked to stop. */
  readonly waits?: boolean;
  readonly counts: Counts;
  readonly shards: Readonly<Record<Split, readonly Shard[]>>;
}

const compressed = promisify(gzip);

export class Shards {
  readonly #dir: string;
  readonly #seen: SeenFiles;
  #state: State;
  #lines: string[] = [];

  private constructor(dir: string, seen: SeenFiles, state: State) {
    this.#dir = dir;
    this.#seen = seen;
    this.#state = state;
  }

  /** @throws ServingError path_unusable; config_invalid where a run with another recipe lies there. */
  static async open(dir: string, recipe: string, seen: SeenFiles): Promise<Shards> {
    const work = workFolder(dir);
    await atPath(dir, () => makeFolder(work));
    const kept = await readState(join(work, 'state.json'));
    if (kept !== undefined && kept.recipe !== recipe) {
      throw new ServingError(
        'config_invalid',
        `--to ${dir} holds a run with other settings or repositories: use the same to go on, or another --to`,
      );
    }
    for (let number = 0; number < (kept?.checkpoints ?? 0); number++) await seen.restore(work, number);
    const none = { recipe, done: 0, checkpoints: 0, counts: noCounts(), shards: { train: [], valid: [] } };
    const shards = new Shards(dir, seen, kept ?? none);
    if (kept?.waits) shards.#lines = await readLines(join(work, waitingFile(kept.checkpoints)));
    return shards;
  }

  /** Repositories that are done and on disk. */
  get done(): number {
    return this.#state.done;
  }

  /** Counts as of the last checkpoint. */
  get counts(): Counts {
    return structuredClone(this.#state.counts);
  }

  get shards(): State['shards'] {
    return this.#state.shards;
  }

  /** Samples that are not on disk yet. */
  get waiting(): number {
    return this.#lines.length;
  }

  add(rows: readonly SampleRow[]): void {
    for (const row of rows) this.#lines.push(`${JSON.stringify(row)}\n`);
  }

  /**
   * Brings everything so far to disk.
   * @param split to which the waiting samples belong
   * @param done repositories that are done @throws ServingError path_unusable
   */
  async checkpoint(split: Split, done: number, counts: Counts): Promise<void> {
    const { shards, checkpoints } = this.#state;
    const next = { ...shards };
    if (this.#lines.length > 0) {
      const file = `${split}-${String(shards[split].length).padStart(6, '0')}.jsonl.gz`;
      const bytes = await compressed(this.#lines.join(''));
      await writeWhole(join(this.#dir, file), bytes);
      const sha256 = createHash('sha256').update(bytes).digest('hex');
      next[split] = [...shards[split], { file, samples: this.#lines.length, bytes: bytes.length, sha256 }];
      this.#lines = [];
    }
    await this.#write({ ...this.#state, done, counts, shards: next, waits: false });
    await rm(join(workFolder(this.#dir), waitingFile(checkpoints)), { force: true });
  }

  /**
   * Brings everything so far to disk without ending a shard, so that shards do not depend on when a run was stopped.
   * @param done repositories that are done @throws ServingError path_unusable
   */
  async keep(done: number, counts: Counts): Promise<void> {
    const file = waitingFile(this.#state.checkpoints + 1); // that of the state before stays until the new one is there
    await writeWhole(join(workFolder(this.#dir), file), this.#lines.join(''));
    await this.#write({ ...this.#state, done, counts, waits: true });
  }

  async #write(state: State): Promise<void> {
    const work = workFolder(this.#dir);
    await this.#seen.save(work, state.checkpoints);
    this.#state = { ...state, checkpoints: state.checkpoints + 1, counts: structuredClone(state.counts) };
    await writeWhole(join(work, 'state.json'), JSON.stringify(this.#state));
  }

  /** Removes what only this run needs. @throws ServingError path_unusable */
  async removeWork(): Promise<void> {
    const work = workFolder(this.#dir);
    await atPath(work, () => rm(work, { recursive: true, force: true }));
  }

  /** Removes all that the run has written. @throws ServingError path_unusable */
  async remove(): Promise<void> {
    await this.removeWork();
    for (const { file } of [...this.#state.shards.train, ...this.#state.shards.valid]) {
      await atPath(file, () => rm(join(this.#dir, file), { force: true }));
    }
  }
}

/** What a run keeps until it has ended. */
export const workFolder = (dir: string) => join(dir, 'work');

/** The file of the samples that wait, by the number of its checkpoint: kill -9 never mixes it with another state. */
const waitingFile = (checkpoints: number) => `waiting-${checkpoints}.jsonl`;

/** @throws ServingError path_unusable */
async function readLines(path: string): Promise<string[]> {
  const text = await atPath(path, () => readFile(path, 'utf8'));
  return text.split(/(?<=\n)/).filter((line) => line !== '');
}

async function readState(path: string): Promise<State | undefined> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  try {
    return text === undefined ? undefined : (JSON.parse(text) as State);
  } catch (cause) {
    throw new ServingError('config_invalid', `${path} is damaged (${reasonOf(cause)}): use another --to`, { cause });
  }
}
