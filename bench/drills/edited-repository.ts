/**
 * A repository that is edited while requests use it. One of its files changes again and again, among a few versions
 * that recur, so that the right answer for each is known, and the stored data must not grow.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { globby } from 'globby';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import type { IndexReport } from '../../services/indexer/index-run.ts';
import { repeatUntilAborted } from '../../services/lib/async/repeat.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { RandomStream } from '../measure/arrivals.ts';
import type { Door } from '../system/tenants.ts';
import { ask } from './json-request.ts';
import { type Reference, type StreamRecord, TIMEOUT_MS, type Traffic } from './streams.ts';

const VERSIONS = 3;
const FILES = 2;

interface Edit {
  readonly path: string;
  readonly content: string;
}

type UploadReport = Pick<IndexReport, 'version' | 'changed'>;

export class EditedRepository {
  readonly #door: Door;
  readonly #name: string;
  /** Edits to make one after the other, and then from the start again. */
  readonly #edits: readonly Edit[];
  /** Version of the index after each edit. */
  readonly #versions: string[] = [];
  #next = 0;

  private constructor(door: Door, name: string, edits: readonly Edit[]) {
    this.#door = door;
    this.#name = name;
    this.#edits = edits;
  }

  /**
   * Uploads some files of a repository and tries every edit of one of them.
   * @param door of a gateway that nothing disturbs.
   * @returns the repository, and the requests of `references` directed at it with the answers that they must get.
   */
  static async make(
    door: Door,
    dir: string,
    references: readonly Reference[],
    name = 'soak-edited',
  ): Promise<{ repository: EditedRepository; references: Reference[] }> {
    const paths = (await globby('**/*.py', { cwd: dir })).sort().slice(-FILES);
    const files = await Promise.all(
      paths.map(async (path) => ({ path, content: await readFile(join(dir, path), 'utf8') })),
    );
    const { path, content } = files[0]!;
    // Each edition lacks other parts of the file, so that retrieval finds other chunks.
    const parts = content.split(/^(?=def |class |@)/m);
    const edition = (i: number) => parts.filter((_, part) => part % VERSIONS !== i).join('');
    const edits = Array.from({ length: VERSIONS }, (_, i) => ({ path, content: `${edition(i)}\n# ${i}\n` }));
    const repository = new EditedRepository(door, name, edits);
    await repository.#put({ files });
    const bodies = references.map(({ body }) => ({ ...body, rag: { ...body.rag!, repo: name, path: undefined } }));
    const answers = bodies.map(() => new Map<string, readonly number[]>());
    for (const edit of edits) {
      const { version } = await repository.#put({ changes: [edit] });
      repository.#versions.push(version);
      for (const [i, body] of bodies.entries()) {
        answers[i]!.set(version, await answerWith(door, body, version));
      }
    }
    return {
      repository,
      references: references.map(({ withoutContext, tookMs }, i) => ({
        body: bodies[i]!,
        tokenIds: [...answers[i]!.values()][0]!,
        withoutContext,
        tookMs,
        byVersion: answers[i]!,
      })),
    };
  }

  /**
   * Edits until the signal is aborted, one upload at a time: of two uploads at once, one would be refused.
   * @param traffic its rate sets the pauses between uploads: 1 / rate seconds on average.
   */
  async edit({ rate, seed, onRecord }: Traffic, startMs: number, until: AbortSignal): Promise<StreamRecord[]> {
    const random = new RandomStream(seed);
    const records: StreamRecord[] = [];
    const pauseMs = () => (random.gamma(1) * 1000) / rate;
    await sleep(pauseMs(), undefined, { signal: until }).catch(() => {});
    await repeatUntilAborted(until, async () => {
      const record = await this.#upload(startMs);
      records.push(record);
      onRecord?.(record);
      return pauseMs();
    });
    return records;
  }

  async #upload(startMs: number): Promise<StreamRecord> {
    const now = () => performance.now() - startMs;
    const record = { sentMs: now(), firstMs: undefined, lost: 0, doubled: 0, longestGapMs: 0 };
    try {
      const { changed, expected } = await this.upload();
      if (changed && expected) return { ...record, endedMs: now(), outcome: 'ok' };
      return { ...record, endedMs: now(), outcome: 'failed', code: 'wrong_version' };
    } catch (error) {
      const { code } = ServingError.from(error, 'worker_lost');
      return { ...record, endedMs: now(), outcome: 'failed', code };
    }
  }

  /**
   * Uploads the next edit, whatever became of the one before.
   * @param onProgress is called whenever the indexer reports progress.
   * @returns the report, and whether its version is the one that this edit must give.
   * @throws what {@link ask} throws.
   */
  async upload(onProgress?: () => void): Promise<UploadReport & { readonly expected: boolean }> {
    const at = this.#next++ % this.#edits.length;
    const report = await this.#put({ changes: [this.#edits[at]!] }, onProgress);
    return { ...report, expected: report.version === this.#versions[at] };
  }

  #put(body: object, onProgress?: () => void): Promise<UploadReport> {
    const { url, apiKey } = this.#door;
    return ask('PUT', `${url}/v1/repos/${this.#name}`, body, { apiKey, onEvent: onProgress });
  }
}

/**
 * The answer from one version of the index. It asks until that version is used: a gateway looks for new ones at
 * intervals.
 */
export async function answerWith(door: Door, body: CompletionBody, version: string): Promise<readonly number[]> {
  const deadline = AbortSignal.timeout(TIMEOUT_MS);
  for (;;) {
    const { rag, tokenIds } = await streamCompletion(door.url, body, deadline, door);
    if (rag?.index_version === version && !rag.degraded) return tokenIds;
    await sleep(100);
  }
}
