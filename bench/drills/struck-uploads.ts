/** Strikes an indexer while it takes an upload: no completion may be affected, and the next upload must succeed. */
import { setTimeout as sleep } from 'node:timers/promises';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Door } from '../system/tenants.ts';
import { answerWith, EditedRepository } from './edited-repository.ts';
import type { Scene } from './scene.ts';
import { commonStart, type Reference } from './streams.ts';
import { ANSWER_TIMEOUT_MS, comeBack, type Strike } from './strikes.ts';

/** Attempts to begin an upload: a gateway finds its indexer again within a second. */
const TRIES = { count: 10, everyMs: 200 };

/**
 * @param repositories number of repositories, used in turn: a killed run leaves its repository locked for a while.
 */
export async function strikeUploads(
  { fleet, references, path, count, mark }: Scene,
  strike: Strike,
  repositories: number,
): Promise<string> {
  const [indexer] = fleet.of('indexer');
  const edited: Awaited<ReturnType<typeof EditedRepository.make>>[] = [];
  for (let i = 0; i < repositories; i++) {
    edited.push(await EditedRepository.make(fleet, path, references.slice(0, 1), `struck-${i}`));
  }
  let succeeded = 0;
  for (let i = 0; i < count; i++) {
    const upload = await beginUpload(edited[i % repositories]!.repository);
    const mended = mark();
    await strike(indexer!);
    if (await upload.outcome) succeeded++;
    await comeBack(fleet, indexer!);
    mended();
  }
  for (const { repository, references } of edited) await mustTakeAnother(fleet, repository, references[0]!);
  return `${count} uploads struck, ${succeeded} of them succeeded; the next uploads succeeded`;
}

async function beginUpload(repository: EditedRepository) {
  for (let i = 0; i < TRIES.count; i++) {
    const upload = await begin(repository);
    if (!upload.hasEnded()) return upload;
    await upload.outcome;
    await sleep(TRIES.everyMs);
  }
  throw new Error('every upload had ended before it could be struck');
}

/**
 * Begins an upload. Resolves when the indexer works on it. `outcome` says whether the upload succeeded, and rejects if
 * it broke a promise.
 */
async function begin(repository: EditedRepository) {
  let ended = false;
  let outcome!: Promise<boolean>;
  await new Promise<void>((begun) => {
    outcome = repository
      .upload(begun)
      .then(({ expected }) => {
        if (!expected) throw new Error('the struck upload led to another version');
        return true;
      }, refused)
      .finally(() => {
        ended = true;
        begun();
      });
    outcome.catch(() => {}); // awaited after the strike
  });
  return { outcome, hasEnded: () => ended };
}

/** @returns false for a retryable error. @throws any other error. */
function refused(error: unknown): false {
  if (error instanceof ServingError && error.kind.retryable) return false;
  throw new Error(`an upload ended with ${ServingError.from(error).message}`, { cause: error });
}

/** The next upload must succeed, and completions must use the version that it makes. */
async function mustTakeAnother(door: Door, repository: EditedRepository, { body, byVersion }: Reference) {
  const deadlineMs = performance.now() + ANSWER_TIMEOUT_MS;
  for (;;) {
    const report = await repository.upload().catch(refused);
    if (report) {
      if (!report.expected) throw new Error('the upload after it led to another version');
      const [tokenIds, expected] = [await answerWith(door, body, report.version), byVersion!.get(report.version)!];
      if (commonStart(tokenIds, expected) < expected.length)
        throw new Error('the context of the new version gives another completion');
      return;
    }
    if (performance.now() > deadlineMs)
      throw new Error(`no upload succeeded within ${ANSWER_TIMEOUT_MS} ms after the strike`);
    await sleep(200);
  }
}
