/**
 * A repository that is edited while it is asked: one of its files changes again and again, among a few versions that recur,
 * so that what must come of each is known, and nothing that is stored may grow.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { globby } from 'globby';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { RandomStream } from '../measure/arrivals.ts';
import { ask } from './json-request.ts';
import { type Reference, type StreamRecord, TIMEOUT_MS, type Traffic } from './streams.ts';

const VERSIONS = 3;
const FILES = 2;

interface Edit {
  readonly path: string;
  readonly content: string;
}

interface IndexReport {
  readonly version: string;
  readonly changed: boolean;
}

export class EditedRepository {
  readonly #url: string;
  readonly #name: string;
  /** One after the other, and from the start again. */
  readonly #edits: readonly Edit[];
  /** Version of the index after each edit. */
  readonly #versions: string[] = [];
  #next = 0;

  private constructor(url: string, name: string, edits: readonly Edit[]) {
    this.#url = url;
    this.#name = name;
    this.#edits = edits;
  }

  /**
   * Uploads some files of a repository and tries every edit of one of them.
   * @param url of a gateway that nothing disturbs.
   * @returns with it, the same requests to this repository and what must come of them.
   */
  static async make(
    url: string,
    dir: string,
    references: readonly Reference[],
    name = 'soak-edited',
  ): Promise<{ repository: EditedRepository; references: Reference[] }> {
    const paths = (await globby('**/*.py', { cwd: dir })).sort().slice(-FILES);
    const files = await Promise.all(
      paths.map(async (path) => ({ path, content: await readFile(join(dir, path), 'utf8') })),
    );
    const { path, content } = files[0]!;
    // Each lacks other parts, so that other ones are found.
    const parts = content.split(/^(?=def |class |@)/m);
    const edition = (i: number) => parts.filter((_, part) => part % VERSIONS !== i).join('');
    const edits = Array.from({ length: VERSIONS }, (_, i) => ({ path, content: `${edition(i)}\n# ${i}\n` }));
    const repository = new EditedRepository(url, name, edits);
    await repository.#put({ files });
    const bodies = references.map(({ body }) => ({ ...body, rag: { ...body.rag!, repo: name, path: undefined } }));
    const answers = bodies.map(() => new Map<string, readonly number[]>());
    for (const edit of edits) {
      const { version } = await repository.#put({ changes: [edit] });
      repository.#versions.push(version);
      for (const [i, body] of bodies.entries()) {
        answers[i]!.set(version, await answerWith(url, body, version));
      }
    }
    return {
      repository,
      references: references.map(({ withoutContext, tookMs }, i) => ({
        ...{ body: bodies[i]!, tokenIds: [...answers[i]!.values()][0]!, withoutContext, tookMs },
        byVersion: answers[i]!,
      })),
    };
  }

  /**
   * Edits until the signal, one upload at a time: two at once would refuse each other.
   * @param rate pauses of 1 / rate seconds in the mean.
   */
  async edit({ rate, seed }: Traffic, startMs: number, until: AbortSignal): Promise<StreamRecord[]> {
    const random = new RandomStream(seed);
    const records: StreamRecord[] = [];
    for (;;) {
      await sleep((random.gamma(1) * 1000) / rate, undefined, { signal: until }).catch(() => {});
      if (until.aborted) return records;
      records.push(await this.#upload(startMs));
    }
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
   * Makes the next edit, whatever has become of the one before.
   * @param onProgress hears of it as the indexer gets on.
   * @returns with the report, whether its version is the one that this edit has to give.
   * @throws what {@link ask} throws.
   */
  async upload(onProgress?: () => void): Promise<IndexReport & { readonly expected: boolean }> {
    const at = this.#next++ % this.#edits.length;
    const report = await this.#put({ changes: [this.#edits[at]!] }, onProgress);
    return { ...report, expected: report.version === this.#versions[at] };
  }

  #put(body: object, onProgress?: () => void): Promise<IndexReport> {
    return ask('PUT', `${this.#url}/v1/repos/${this.#name}`, body, onProgress);
  }
}

/** A gateway may look for a new version only now and then. */
export async function answerWith(url: string, body: CompletionBody, version: string): Promise<readonly number[]> {
  const deadline = AbortSignal.timeout(TIMEOUT_MS);
  for (;;) {
    const { rag, tokenIds } = await streamCompletion(url, body, deadline);
    if (rag?.index_version === version && !rag.degraded) return tokenIds;
    await sleep(100);
  }
}
